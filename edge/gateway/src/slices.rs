//! Large bodies, slice by slice: a range of one asks upstream for the slices that it lies in and no more, what has come is kept,
//! and a body that broke off goes on where it ended. A strong validator ties the slices together (RFC 9111 section 3.4).
//!
//! What is missing of a stored response is no mistake here: it has not been asked for yet, or was evicted. Each slice that is on
//! its way is a [`Fill`] of its own, which all who need it share.

use crate::asked::Asked;
use crate::fetch::{self, Own, Relayed};
use crate::fetch_error::{FetchError, FetchFailed};
use crate::fill::{Ends, Fill, FillHead, FillReader, Joined};
use crate::gateway::Gateway;
use crate::site::Counters;
use crate::upstream::{Fetched, Upstream, UpstreamBody};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tidegate_cache::{CacheKey, Freshness, VaryKey, partial};
use tidegate_control_types::Revision;
use tidegate_store::{Body, CHUNK, Piece, Ranges, Store, StoredResponse};
use tokio::sync::oneshot;
use tokio::time::Sleep;

/// What upstream is asked for at once, in bytes: pieces as the store has them, and what one byte can cost at most.
pub const SLICE: u64 = 4 * CHUNK as u64;
/// Longer bodies are kept slice by slice, where upstream takes ranges, in bytes.
pub const LARGE: u64 = 8 << 20;
/// How long a body that comes by itself waits for a slow reader to want its next slice.
pub const LINGER: Duration = Duration::from_secs(30);
/// The same for a body that upstream does not give in parts: to ask for it once more would cost all of its beginning.
const WHOLE_LINGER: Duration = Duration::from_secs(3600);
/// The most bytes that are left out of such a body's beginning.
const MOST_LEFT_OUT: u64 = 64 << 20;
/// How long slices that have come wait for readers that are a little behind.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);
/// Slices that have come and are still held.
const MOST_RECENT: usize = 8;
/// A disk that takes longer for one piece has failed.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// The Range of a slice.
pub fn range(slice: u64) -> HeaderValue {
    let first = slice.saturating_mul(SLICE);
    HeaderValue::from_str(&format!("bytes={first}-{}", first.saturating_add(SLICE - 1))).unwrap_or(HeaderValue::from_static("bytes=0-"))
}

/// The length of the whole, where the head of a 206 is that of this slice. `sent`: the length of its body, where the framing gives it.
pub fn of_slice(part: &HeaderMap, sent: Option<u64>, slice: u64) -> Option<u64> {
    let (first, last, length) = partial::content_range(part)?;
    let fits = first == slice.checked_mul(SLICE)? && last == first.checked_add(SLICE)?.min(length).checked_sub(1)?;
    // A part that was coded on its way has another length than its range.
    let is_whole = sent.map_or(!part.contains_key(header::CONTENT_ENCODING), |sent| sent == last - first + 1);
    (fits && is_whole).then_some(length)
}

fn key(body: &Body, slice: u64) -> Option<CacheKey> {
    if let Body::Chunked { object, .. } = body { Some(CacheKey::chunk(*object, slice)) } else { None }
}

/// A slice on its way.
pub struct Coming {
    pub fill: Arc<Fill>,
    /// Another request began it.
    pub is_joined: bool,
}

/// Where the slices of one response come from that are not here.
pub trait Source {
    /// A fill of the slice: another request's, or a new one. `as_asked`: only one that no other request's fields can cause to fail.
    fn fill(&self, slice: u64, as_asked: bool) -> Coming;

    /// Whether a slice is fetched by itself, as far as is known: else the next one comes with the one before.
    fn gives_parts(&self) -> bool;
}

pub struct Slices<U> {
    gateway: Rc<Gateway<U>>,
    asked: Rc<Asked>,
    stored: Arc<StoredResponse>,
    /// The requests for the last slices. Each slice has an allowance of attempts of its own, which all its fetches share.
    slices: RefCell<BTreeMap<u64, Rc<Asked>>>,
}

impl<U: Upstream> Slices<U> {
    pub fn new(gateway: &Rc<Gateway<U>>, asked: &Asked, stored: &Arc<StoredResponse>) -> Self {
        Self { gateway: Rc::clone(gateway), asked: Rc::new(asked.again()), stored: Arc::clone(stored), slices: RefCell::default() }
    }

    fn asked(&self, slice: u64) -> Rc<Asked> {
        let mut slices = self.slices.borrow_mut();
        // A body has at most two on their way.
        slices.retain(|known, _| slice.abs_diff(*known) <= 1);
        Rc::clone(slices.entry(slice).or_insert_with(|| Rc::new(self.asked.again())))
    }
}

impl<U: Upstream> Slices<U> {
    /// Whether it came between the look for it and now; it is in `fill` then.
    fn is_here(&self, slice: u64, fill: &Fill) -> bool {
        let (store, body) = (&self.gateway.store, &self.stored.body);
        let (first, end) = (slice * SLICE, ((slice + 1) * SLICE).min(body.len()));
        let pieces = end.checked_sub(1).and_then(|last| store.body(body, first, last)).unwrap_or_default();
        let here: Vec<_> = pieces.iter().filter_map(|p| if let Piece::Here(bytes) = p { Some(bytes) } else { None }).collect();
        if here.is_empty() || here.len() < pieces.len() {
            return false;
        }
        fill.head(Arc::new(head_of_slice(fill.begun, end - first)));
        for bytes in here {
            fill.push(bytes);
        }
        fill.done();
        true
    }
}

impl<U: Upstream> Source for Slices<U> {
    fn gives_parts(&self) -> bool {
        self.gateway.store.ranges(&self.asked.key) != Ranges::Whole
    }

    fn fill(&self, slice: u64, as_asked: bool) -> Coming {
        self.begin(slice, as_asked, None)
    }
}

impl<U: Upstream> Slices<U> {
    /// As [`Source::fill`]. `relay` gets the origin's answer if it refuses a slice that begins now.
    pub fn begin(&self, slice: u64, as_asked: bool, relay: Option<oneshot::Sender<Relayed>>) -> Coming {
        let gateway = &self.gateway;
        let (demand, clean, end_to_end) = (gateway.demand(&self.asked), self.stored.clean_through(), gateway.past_caches(&self.asked));
        // From no cache that knows less of purges than what it is to be a part of.
        let demand = if clean.reaches(demand) { clean } else { demand };
        let fields = self.asked.fields_hash();
        let new = || gateway.new_fill(demand, end_to_end).asked_with(fields);
        let Some(key) = key(&self.stored.body, slice) else { return Coming { fill: new(), is_joined: false } };
        let fits = |fill: &Fill| !fill.has_failed() && (!as_asked || fill.is_as_asked_with(fields));
        match gateway.fills.join(&key, fits, new) {
            Joined::Joined(fill) => {
                fill.want();
                Coming { fill, is_joined: true }
            }
            Joined::Began(fill, _) => {
                fill.want();
                if self.is_here(slice, &fill) {
                    gateway.fills.remove(&key, &fill);
                    return Coming { fill, is_joined: false };
                }
                let (gateway, asked, stored, of_task) =
                    (Rc::clone(gateway), self.asked(slice), Arc::clone(&self.stored), Arc::clone(&fill));
                tokio::task::spawn_local(async move {
                    let _ends = Ends::new(&gateway.fills, Some(key), &of_task);
                    let run = fetch_slice(&gateway, &asked, &stored, slice, &of_task, demand, end_to_end, relay);
                    if let Err(error) = run.await {
                        gateway.note_failure(&asked, error);
                        tracing::debug!(site = asked.site.name(), target = asked.target.path_and_query, slice, %error, "a slice failed");
                        of_task.fail(error);
                    }
                });
                Coming { fill, is_joined: false }
            }
        }
    }
}

#[allow(clippy::too_many_arguments)]
async fn fetch_slice<U: Upstream>(
    gateway: &Rc<Gateway<U>>,
    asked: &Asked,
    stored: &Arc<StoredResponse>,
    slice: u64,
    fill: &Arc<Fill>,
    demand: Revision,
    end_to_end: bool,
    relay: Option<oneshot::Sender<Relayed>>,
) -> Result<(), FetchFailed> {
    let mut request = gateway.shared_head(asked).request(&Method::GET);
    request.headers_mut().insert(header::RANGE, range(slice));
    if let Some(validator) = partial::strong_validator(&stored.headers) {
        request.headers_mut().insert(header::IF_RANGE, validator.clone());
    }
    if !stored.vary.names(header::ACCEPT_ENCODING.as_str()) {
        // This client may prefer a coding, which would be another response. A stored response that has a coding varies by this field.
        request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    Counters::add(&asked.site.counters.fetches, 1);
    let asking = gateway.ask_upstream(asked, request, gateway.fetch_to(asked, demand, end_to_end));
    let mut fetched = fetch::while_wanted(asked, fill, asking).await?;
    let (status, headers) = (fetched.response.status(), fetched.response.headers());
    if status.is_server_error() {
        return Err(FetchError::ServerError.into());
    }
    let is_part = status == StatusCode::PARTIAL_CONTENT && of_slice(headers, fetched.length, slice) == Some(stored.body.len());
    // A body without a length that ends early is an error. Bytes behind the stored length are not read.
    let is_long = fetched.length.is_none_or(|length| length == stored.body.len());
    // All of the same, of which this slice is near enough to the beginning.
    let is_whole = status == StatusCode::OK && is_long && slice * SLICE <= MOST_LEFT_OUT;
    if status.is_redirection() || status.is_client_error() {
        // The origin refuses this client's request, or refuses it for now: other clients may get the same part.
        if matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE) {
            let neutral = Asked { headers: HeaderMap::new(), ..asked.again() };
            gateway.in_background(&asked.key, drop_if_gone(Rc::clone(gateway), neutral, Arc::clone(stored)));
        }
        if let Some(relay) = relay {
            let clean_through = fetched.vouched.unwrap_or(demand);
            let Fetched { response, length, close_delimited, .. } = fetched;
            let _ = relay.send(Relayed::Whole(Own { response, clean_through, length, unframed: close_delimited, why: None }));
        }
        return Err(FetchError::PartRefused.into());
    }
    let is_same = partial::is_part_of(&stored.headers, headers);
    if !(is_part && is_same) {
        // The stored response has no future: upstream has another one by now, or gives no parts of it.
        gateway.store.drop_response(&asked.key, stored);
    }
    if status == StatusCode::OK && is_same {
        gateway.store.note_ranges(&asked.key, Ranges::Whole);
    }
    if !is_same || !(is_part || is_whole) {
        return Err(FetchError::Changed.into());
    }
    let length = SLICE.min(stored.body.len());
    fill.head(Arc::new(head_of_slice(demand, length)));
    let ends = Ends::new(&gateway.fills, key(&stored.body, slice), fill);
    let from = fetched.response.body_mut();
    if is_part {
        take_in(gateway, asked, &stored.body, slice, ends, (from, Bytes::new()), None).await?;
        // Reads to the end, so that the connection can be used again.
        let _ = from.data().await;
    } else {
        // The same response as a whole. Its clients are in the midst of the body: the bytes before this slice are left out.
        let rest = tokio::select! {
            biased;
            rest = leave_out(slice * SLICE, from) => rest?,
            () = fetch::is_not_worth_its_end(asked, fill, Some(length)) => return Err(FetchError::Abandoned.into()),
        };
        // If another fetch brings the next slice already, that one goes on.
        let on = !key(&stored.body, slice + 1).is_some_and(|next| gateway.fills.has(&next));
        // A failure of the later slices does not count for this one.
        let _ = take_in(gateway, asked, &stored.body, slice, ends, (from, rest), on.then_some(WHOLE_LINGER)).await;
    }
    Ok(())
}

/// Asks the origin for the head of a stored response, without any client's fields, and drops the response if it does not exist any more.
async fn drop_if_gone<U: Upstream>(gateway: Rc<Gateway<U>>, asked: Asked, stored: Arc<StoredResponse>) {
    let request = gateway.shared_head(&asked).request(&Method::HEAD);
    let fetched = gateway.ask_upstream(&asked, request, gateway.fetch_to(&asked, gateway.demand(&asked), true)).await;
    if fetched.is_ok_and(|f| matches!(f.response.status(), StatusCode::NOT_FOUND | StatusCode::GONE)) {
        gateway.store.drop_response(&asked.key, &stored);
    }
}

/// For who waits until a slice has begun to come.
fn head_of_slice(clean_through: Revision, length: u64) -> FillHead {
    FillHead {
        status: StatusCode::PARTIAL_CONTENT,
        headers: HeaderMap::new(),
        freshness: Freshness::default(),
        tags: Vec::new(),
        vary: VaryKey::default(),
        clean_through,
        length: Some(length),
        codable: false,
    }
}

/// Registers a slice that comes without having been asked for by itself.
pub fn coming<U: Upstream>(gateway: &Gateway<U>, body: &Body, slice: u64, begun: Revision) -> Ends {
    let fill = gateway.new_fill(begun, false);
    fill.head(Arc::new(head_of_slice(begun, SLICE)));
    let key = key(body, slice);
    key.iter().for_each(|key| drop(gateway.fills.add(key, Arc::clone(&fill))));
    Ends::new(&gateway.fills, key, &fill)
}

/// Reads `bytes` bytes and drops them. Returns the rest of the last piece.
async fn leave_out(mut bytes: u64, from: &mut UpstreamBody) -> Result<Bytes, FetchError> {
    loop {
        let mut data = from.data().await.ok_or(FetchError::Broken)??;
        match usize::try_from(bytes).ok().filter(|bytes| *bytes <= data.len()) {
            Some(bytes) => return Ok(data.split_off(bytes)),
            None => bytes -= data.len() as u64,
        }
    }
}

/// Takes a body in from the beginning of a slice; `rest` came already. `linger`: it goes on behind that slice; for so long it waits until a reader wants the next one,
/// and no reader of a slice that nobody holds any more is far behind.
///
/// # Errors
/// It broke off; the slices that came whole before are kept.
pub async fn take_in<U: Upstream>(
    gateway: &Gateway<U>,
    asked: &Asked,
    body: &Body,
    mut slice: u64,
    mut fill: Ends,
    (from, mut rest): (&mut UpstreamBody, Bytes),
    linger: Option<Duration>,
) -> Result<(), FetchError> {
    let slices = body.len().div_ceil(SLICE);
    let mut recent = Recent { gateway, body, fills: VecDeque::new() };
    let mut upcoming: VecDeque<Ends> = VecDeque::new();
    let ended = loop {
        // Those who read the next slice ask for the one behind it already.
        while linger.is_some() && upcoming.len() < 2 && slice + 1 + (upcoming.len() as u64) < slices {
            upcoming.push_back(coming(gateway, body, slice + 1 + upcoming.len() as u64, fill.begun));
        }
        let length = SLICE.min(body.len() - slice * SLICE);
        let whole = tokio::select! {
            biased;
            whole = fill_slice(&fill, length, &mut rest, from) => whole,
            () = fetch::is_not_worth_its_end(asked, &fill, Some(length)) => Err(FetchError::Abandoned),
        };
        match whole {
            Err(error) => fill.fail(error),
            Ok(()) => {
                let first = slice * (SLICE / CHUNK as u64);
                for (n, piece) in (first..).zip(fill.done()) {
                    gateway.store.keep_piece(&asked.key, body, n, piece);
                }
            }
        }
        recent.fills.push_back((slice, fill));
        let Some(next) = upcoming.pop_front() else { break whole };
        recent.leave_all_but(MOST_RECENT, LEAVE_WITHIN).await;
        (slice, fill) = (slice + 1, next);
        if whole.is_err() || !recent.is_followed_by(&fill, linger.unwrap_or_default()).await {
            // Whoever came to these meanwhile asks for them by itself.
            for (slice, fill) in (slice..).zip(std::iter::once(fill).chain(upcoming)) {
                fill.fail(FetchError::Broken);
                recent.fills.push_back((slice, fill));
            }
            break whole;
        }
    };
    recent.leave_all_but(0, LEAVE_WITHIN).await;
    ended
}

/// Slices that came of late, for readers that are a little behind: what has just come may be in no tier yet, or in none any more.
struct Recent<'a, U> {
    gateway: &'a Gateway<U>,
    body: &'a Body,
    fills: VecDeque<(u64, Ends)>,
}

impl<U: Upstream> Recent<'_, U> {
    /// Resolves to `true` once the next slice has a reader; to `false` once these slices have no readers, or only slow ones.
    async fn is_followed_by(&self, next: &Fill, linger: Duration) -> bool {
        let unread = async {
            let mut looks = 0;
            while looks < 2 {
                tokio::time::sleep(fetch::UNREAD_FOR / 2).await;
                looks = if self.fills.iter().any(|(_, fill)| fill.is_read()) { 0 } else { looks + 1 };
            }
        };
        tokio::select! {
            biased;
            () = next.wanted() => true,
            () = unread => false,
            () = tokio::time::sleep(linger) => false,
        }
    }

    /// Lets go of the oldest, which readers of what is stored nowhere have to be done with, or to be so slow that they ask for it
    /// by themselves.
    async fn leave_all_but(&mut self, most: usize, within: Duration) {
        let too_late = tokio::time::sleep(within);
        tokio::pin!(too_late);
        while self.fills.len() > most {
            let Some((slice, fill)) = self.fills.pop_front() else { return };
            let first = slice * SLICE;
            if !fill.has_failed() && self.gateway.store.piece(self.body, first, first).is_none() {
                tokio::select! {
                    () = fill.unread() => {}
                    () = &mut too_late => {}
                }
            }
        }
    }
}

/// Fills one slice of `length` bytes; what comes on top is left in `rest`.
async fn fill_slice(fill: &Fill, length: u64, rest: &mut Bytes, from: &mut UpstreamBody) -> Result<(), FetchError> {
    let mut left = usize::try_from(length).unwrap_or(usize::MAX);
    while left > 0 {
        if rest.is_empty() {
            *rest = from.data().await.ok_or(FetchError::Broken)??;
            continue;
        }
        let now = rest.split_to(rest.len().min(left));
        left -= now.len();
        fill.push(&now);
    }
    Ok(())
}

/// A part of a body, of which pieces may have to be read from the disk or fetched.
pub struct SlicedBody {
    source: Box<dyn Source>,
    store: Arc<Store>,
    body: Body,
    at: u64,
    /// One past the last byte.
    end: u64,
    doing: Doing,
    /// The slice after the one that comes now, asked for already.
    ahead: Option<(u64, Reading)>,
    /// The slice that was asked for once more after it had failed.
    again: Option<u64>,
}

enum Doing {
    Nothing,
    Loading(oneshot::Receiver<Bytes>, Pin<Box<Sleep>>),
    Reading(Reading),
}

/// A slice that this body reads while it comes.
struct Reading {
    from: FillReader,
    /// Another request began it, or some of it has come: where it fails, this request has attempts left.
    may_ask_again: bool,
}

impl SlicedBody {
    #[must_use]
    pub fn new(source: Box<dyn Source>, store: &Arc<Store>, body: &Body, first: u64, end: u64) -> Self {
        let (store, body) = (Arc::clone(store), body.clone());
        Self { source, store, body, at: first, end, doing: Doing::Nothing, ahead: None, again: None }
    }

    /// Bytes still to come.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }

    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FetchError>>> {
        while self.left() > 0 {
            let came = match &mut self.doing {
                Doing::Nothing => self.begin(),
                Doing::Loading(loading, too_late) => {
                    let read = match Pin::new(loading).poll(cx) {
                        Poll::Ready(read) => read.ok(),
                        Poll::Pending => {
                            ready!(too_late.as_mut().poll(cx));
                            None
                        }
                    };
                    // What the disk cannot give is fetched.
                    self.doing = if read.is_some() { Doing::Nothing } else { self.fetch(false) };
                    read
                }
                Doing::Reading(reading) => match ready!(reading.from.poll_data(cx)) {
                    Some(Ok(bytes)) => {
                        reading.may_ask_again = true;
                        Some(bytes)
                    }
                    Some(Err(error)) => {
                        let may_ask_again = reading.may_ask_again;
                        if !may_ask_again || !self.asks_again(error) {
                            return Poll::Ready(Some(Err(error)));
                        }
                        None
                    }
                    None => {
                        self.doing = Doing::Nothing;
                        None
                    }
                },
            };
            if let Some(bytes) = came.filter(|b| !b.is_empty()) {
                self.at += bytes.len() as u64;
                return Poll::Ready(Some(Ok(bytes)));
            }
        }
        Poll::Ready(None)
    }

    /// The next piece, where it is here; else whatever brings it is under way then.
    fn begin(&mut self) -> Option<Bytes> {
        self.ahead.take_if(|(slice, _)| *slice < self.at / SLICE);
        match self.store.piece(&self.body, self.at, self.end - 1) {
            Some(Piece::Here(bytes)) => return Some(bytes),
            Some(Piece::OnDisk(piece)) => {
                self.doing = Doing::Loading(self.store.read(piece), Box::pin(tokio::time::sleep(READ_WITHIN)));
            }
            None => self.doing = self.fetch(false),
        }
        None
    }

    fn fetch(&mut self, as_asked: bool) -> Doing {
        let slice = self.at / SLICE;
        let reading = match self.ahead.take() {
            Some((ahead, reading)) if ahead == slice && self.at == slice * SLICE => reading,
            _ => self.reading(slice, as_asked),
        };
        // The next one is on its way before it is needed.
        let behind = (slice + 1) * SLICE;
        if behind < self.end && self.source.gives_parts() && self.store.piece(&self.body, behind, behind).is_none() {
            self.ahead = Some((slice + 1, self.reading(slice + 1, false)));
        }
        Doing::Reading(reading)
    }

    /// Of what this body needs of a slice.
    fn reading(&self, slice: u64, as_asked: bool) -> Reading {
        let (begin, behind) = (slice * SLICE, (slice + 1) * SLICE);
        let Coming { fill, is_joined } = self.source.fill(slice, as_asked);
        let from = FillReader::new(fill, self.at.max(begin) - begin, Some(self.end.min(behind) - begin));
        Reading { from, may_ask_again: is_joined }
    }

    /// Asks once more for a slice that broke off, from where it ended for this reader; `false`: that has been done.
    fn asks_again(&mut self, error: FetchError) -> bool {
        let slice = self.at / SLICE;
        if error == FetchError::Changed || self.again.replace(slice) == Some(slice) {
            return false;
        }
        self.ahead = None;
        self.doing = self.fetch(true);
        true
    }
}
