//! The leader's part of a fill: ask upstream, decide whether the response may be stored, and store while it streams.

use crate::asked::{Asked, Outgoing, Purpose};
use crate::fetch_error::{FetchError, FetchFailed};
use crate::fields;
use crate::fill::{Ends, Fill, FillHead, SMALL_WINDOW, WINDOW};
use crate::gateway::{Gateway, Tier, hash};
use crate::slices::{self, LARGE, SLICE};
use crate::upstream::{Fetched, Upstream, UpstreamBody};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tidegate_cache::reuse::StandIn;
use tidegate_cache::storable::{Exchange, NotStorable};
use tidegate_cache::{Freshness, NoVaryKey, VaryKey, cache_control, coding, field, partial, range, storable, validation};
use tidegate_control_types::planted::Bug;
use tidegate_control_types::{BootTime, Revision, WallTime};
use tidegate_store::{Passed, Ranges, StoredResponse};
use tokio::sync::oneshot;

/// A stored response that upstream is asked about.
#[derive(Clone)]
pub struct Validating {
    pub stored: Arc<StoredResponse>,
    /// The failures of upstream after which the stored response may be served.
    pub or_stale: StandIn,
}

impl Validating {
    /// Whether upstream can be asked whether it is still good.
    #[must_use]
    pub fn has_validator(&self) -> bool {
        !validation::conditions(&self.stored.headers).is_empty()
    }
}

/// A response for the one request that fetched it.
pub struct Own {
    pub response: Response<UpstreamBody>,
    /// Through which it is known to be clean.
    pub clean_through: Revision,
    /// Bytes of its body, where its framing said how many.
    pub length: Option<u64>,
    /// Its body ends with its connection: nobody can tell a whole one from a torn one.
    pub unframed: bool,
    /// Why it is not stored, where it might have been.
    pub why: Option<NotStorable>,
}

/// What the request that began a fill gets beside the fill.
pub enum Relayed {
    /// The response itself, where it cannot be shared.
    Whole(Own),
    /// What came with what is shared and is this client's alone: cookies, and fields that the response names so.
    Fields(HeaderMap),
}

/// `names`: the fields that are not stored.
fn relay_own(relay: Option<oneshot::Sender<Relayed>>, headers: &HeaderMap, names: Vec<HeaderName>) {
    let Some(relay) = relay else { return };
    let mut own = HeaderMap::new();
    for name in names {
        if !own.contains_key(&name) {
            for value in headers.get_all(&name) {
                own.append(name.clone(), value.clone());
            }
        }
    }
    if !own.is_empty() {
        let _ = relay.send(Relayed::Fields(own));
    }
}

/// Fields that are kept for nobody.
fn unshared(headers: &HeaderMap) -> Vec<HeaderName> {
    let mut names = cache_control::unshared(headers);
    if !Bug::CookiesKept.is_planted() {
        names.push(header::SET_COOKIE);
    }
    names
}

/// What of a response is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of it: parts of it are this node's own business.
    Whole,
    /// The slice that the client's range begins in.
    Slice(u64),
}

/// The next step for a part that cannot be stored.
enum Instead {
    /// Upstream is asked for this.
    Ask(Wanted),
    /// Each client asks for its own part.
    Unshared,
}

struct Received {
    fetched: Fetched,
    /// When it was asked for, and when its head came.
    times: (WallTime, WallTime),
    asked_at: BootTime,
    end_to_end: bool,
    /// Through which the response is known to be clean.
    clean_through: Revision,
}

/// Runs a fill from its request to its end. It starts once the head of `after` is here. `relay` gets a response that is not shared.
#[allow(clippy::too_many_arguments)]
pub async fn run<U: Upstream>(
    gateway: Rc<Gateway<U>>,
    asked: Rc<Asked>,
    fill: Arc<Fill>,
    after: Option<Arc<Fill>>,
    demand: Revision,
    end_to_end: bool,
    validating: Option<Validating>,
    relay: Option<oneshot::Sender<Relayed>>,
) {
    let _ends = Ends::new(&gateway.fills, Some(asked.key.clone()), &fill);
    if let Some(after) = after {
        let its_turn = async {
            // However that one ends.
            let _ = after.arrived().await;
            Ok(())
        };
        if let Err(error) = while_wanted(&asked, &fill, its_turn).await {
            return fill.fail(error);
        }
        asked.reload_for_all();
        fill.begin(gateway.clock.boot());
    }
    let ended = lead(&gateway, &asked, &fill, demand, end_to_end, validating, relay).await;
    if let Err(error) = ended {
        tracing::debug!(site = asked.site.name(), target = asked.target.path_and_query, %error, "a fill failed");
        gateway.note_failure(&asked, error);
        fill.fail(error);
    }
}

async fn lead<U: Upstream>(
    gateway: &Rc<Gateway<U>>,
    asked: &Rc<Asked>,
    fill: &Arc<Fill>,
    demand: Revision,
    end_to_end: bool,
    mut validating: Option<Validating>,
    relay: Option<oneshot::Sender<Relayed>>,
) -> Result<(), FetchFailed> {
    let mut wanted = wanted(gateway, asked);
    loop {
        let conditions = validating.as_ref().map(|v| validation::conditions(&v.stored.headers)).unwrap_or_default();
        let asking = ask(gateway, asked, demand, end_to_end, &conditions, wanted);
        let mut received = while_wanted(asked, fill, asking).await?;
        let status = received.fetched.response.status();
        if received.fetched.stands_in {
            fill.note_stand_in();
        }
        if status == StatusCode::NOT_MODIFIED && !conditions.is_empty() {
            let Some(v) = validating.take() else { return Err(FetchError::Broken.into()) };
            match confirm(gateway, asked, &v.stored, &received) {
                Ok((confirmed, own)) => {
                    if confirmed.vary != v.stored.vary {
                        gateway.store.drop_response(&asked.key, &v.stored);
                    }
                    let confirmed = Arc::new(confirmed);
                    note_sharing(gateway, asked, &received, &confirmed.freshness);
                    keep(gateway, asked, fill, &confirmed);
                    relay_own(relay, received.fetched.response.headers(), own);
                    fill.stored(confirmed, Some(status));
                    return Ok(());
                }
                // Ask again, for a whole one.
                Err(Unconfirmed::Another) => {}
                Err(Unconfirmed::NotStorable(why)) => {
                    note_unshared(gateway, asked, v.stored.status, why);
                    if why.is_of_the_key() {
                        gateway.store.drop_response(&asked.key, &v.stored);
                    }
                }
            }
            continue;
        }
        if is_server_error(status) && validating.as_ref().is_some_and(|v| v.or_stale == StandIn::AnyError) {
            return Err(FetchError::ServerError.into());
        }
        let part = match wanted {
            Wanted::Slice(slice) if status == StatusCode::PARTIAL_CONTENT => match as_whole(gateway, asked, &mut received, slice) {
                Ok(part) => part,
                Err(Instead::Ask(instead)) => {
                    wanted = instead;
                    continue;
                }
                Err(Instead::Unshared) => {
                    fill.unshared();
                    return Ok(());
                }
            },
            // Whether the client's range can be satisfied is for this node to say, once it knows the length.
            Wanted::Slice(slice) if status == StatusCode::RANGE_NOT_SATISFIABLE => {
                wanted = if slice > 0 { Wanted::Slice(0) } else { Wanted::Whole };
                continue;
            }
            _ => None,
        };
        return receive(gateway, asked, Purpose::Shared, fill, received, relay, part).await;
    }
}

fn wanted<U: Upstream>(gateway: &Gateway<U>, asked: &Asked) -> Wanted {
    // A HEAD has no range (RFC 9110 section 14.2).
    match range::first(&asked.headers).filter(|_| asked.method == Method::GET) {
        Some(first) if gateway.store.ranges(&asked.key) == Ranges::InSlices => Wanted::Slice(first / SLICE),
        _ => Wanted::Whole,
    }
}

/// Makes the head of a 206 that of the whole; returns the slice that it is one of, or `None` where it is all of it.
///
/// # Errors
/// It cannot be kept.
fn as_whole<U: Upstream>(gateway: &Gateway<U>, asked: &Asked, received: &mut Received, slice: u64) -> Result<Option<u64>, Instead> {
    let response = &mut received.fetched.response;
    let length = slices::of_slice(response.headers(), received.fetched.length, slice);
    let Some(length) = length.filter(|_| partial::strong_validator(response.headers()).is_some()) else {
        // Parts that nothing ties together, or others than were asked for.
        let is_large = partial::content_range(response.headers()).is_some_and(|(_, _, length)| length > LARGE);
        let ranges = if is_large { Ranges::OfOneClient } else { Ranges::Whole };
        gateway.store.note_ranges(&asked.key, ranges);
        return Err(if is_large { Instead::Unshared } else { Instead::Ask(Wanted::Whole) });
    };
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    // Of the part, not of the whole.
    for name in [header::CONTENT_RANGE, HeaderName::from_static("content-md5"), HeaderName::from_static("content-digest")] {
        headers.remove(name);
    }
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    received.fetched.length = Some(length);
    match may_store(gateway, asked, Purpose::Shared, &received.fetched, asked.site.state.spec.cache.max_object, received.times) {
        Ok(_) => Ok((length > SLICE).then_some(slice)),
        Err(why) => {
            note_unshared(gateway, asked, StatusCode::PARTIAL_CONTENT, why);
            Err(Instead::Unshared)
        }
    }
}

/// How the next requests for the same key are to be treated, after a response that may not be stored.
fn note_unshared<U: Upstream>(gateway: &Gateway<U>, asked: &Asked, status: StatusCode, why: NotStorable) {
    // The client's own fields may be the cause of an error, and its cookies of a private page.
    let is_refusal = status.is_client_error() && !matches!(status.as_u16(), 404 | 405 | 410 | 414 | 451);
    if why.is_of_the_key() && !is_refusal && !asked.headers.contains_key(header::COOKIE) {
        gateway.store.pass(&asked.key, Passed::Everyones(Some(why)));
    } else if (why.is_of_the_key() && !is_refusal) || why == NotStorable::HeuristicForOneClient {
        gateway.store.pass(&asked.key, Passed::WithCookie);
    }
}

/// The statuses for which stale-if-error stands in (RFC 5861 section 4).
fn is_server_error(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

async fn ask<U: Upstream>(
    gateway: &Rc<Gateway<U>>,
    asked: &Asked,
    demand: Revision,
    end_to_end: bool,
    conditions: &[(HeaderName, HeaderValue)],
    wanted: Wanted,
) -> Result<Received, FetchFailed> {
    let mut request = gateway.shared_head(asked).request(&Method::GET);
    if let Wanted::Slice(slice) = wanted {
        request.headers_mut().insert(header::RANGE, slices::range(slice));
    }
    for (name, value) in conditions {
        request.headers_mut().insert(name.clone(), value.clone());
    }
    // Read before anything is sent: what is purged from now on, this response may not know.
    let here = gateway.revision();
    let (request_time, mut asked_at) = (gateway.clock.wall(), gateway.clock.boot());
    let mut fetched = gateway.ask_upstream(asked, request, gateway.fetch_to(asked, demand, end_to_end)).await?;
    let mut begun = if here.reaches(demand) { here } else { demand };
    if Bug::SecondCountsFromAnswer.is_planted() {
        asked_at = gateway.clock.boot();
    }
    let confirmed = fetched.response.status() == StatusCode::NOT_MODIFIED;
    if if confirmed { Bug::ConfirmationCleanFromItsEnd } else { Bug::FillCleanFromItsEnd }.is_planted() {
        begun = gateway.revision();
    }
    let response_time = gateway.clock.wall();
    cleanse(fetched.response.headers_mut(), response_time);
    let clean_through = fetched.vouched.filter(|_| !Bug::VouchingIgnored.is_planted()).unwrap_or(begun);
    Ok(Received { fetched, times: (request_time, response_time), asked_at, end_to_end, clean_through })
}

fn cleanse(headers: &mut HeaderMap, response_time: WallTime) {
    fields::strip_hop_by_hop(headers);
    fields::strip_internal(headers);
    fields::strip_framing(headers);
    if !headers.contains_key(header::DATE) {
        // RFC 9110 section 6.6.1.
        fields::insert(headers, header::DATE, &field::show_date(response_time.as_secs()));
    }
}

/// An answer to one client, sent for at these times, that answers others too: a fill for all who come. `fill`: where one is among the
/// others already.
pub fn keep_answer<U: Upstream>(
    gateway: &Rc<Gateway<U>>,
    asked: &Rc<Asked>,
    mut fetched: Fetched,
    (request_time, asked_at): (WallTime, BootTime),
    clean_through: Revision,
    fill: Option<Arc<Fill>>,
) -> (Arc<Fill>, oneshot::Receiver<Relayed>) {
    // Among the others, so that a later invalidation finds it.
    let new = || gateway.fills.add(&asked.key, gateway.fills.new_fill(clean_through, asked_at, false, false));
    let fill = fill.unwrap_or_else(new);
    fill.share();
    let response_time = gateway.clock.wall();
    cleanse(fetched.response.headers_mut(), response_time);
    let received = Received { fetched, times: (request_time, response_time), asked_at, end_to_end: false, clean_through };
    let (relay, relayed) = oneshot::channel();
    let (gateway, asked, of_task) = (Rc::clone(gateway), Rc::clone(asked), Arc::clone(&fill));
    tokio::task::spawn_local(async move {
        let _ends = Ends::new(&gateway.fills, Some(asked.key.clone()), &of_task);
        if let Err(error) = receive(&gateway, &asked, Purpose::OneClient, &of_task, received, Some(relay), None).await {
            gateway.note_failure(&asked, error);
            of_task.fail(error);
        }
    });
    (fill, relayed)
}

/// `times`: when it was asked for, and when its head came.
fn freshness(asked: &Asked, status: StatusCode, headers: &HeaderMap, times: (WallTime, WallTime)) -> Freshness {
    let said = cache_control::of_response(headers);
    let (request_time, response_time) = times;
    let freshness = Freshness::new(status, headers, &said, request_time, response_time, asked.site.defaults);
    match asked.site.state.spec.cache.ttl_jitter {
        0 => freshness,
        percent => freshness.spread(percent, hash(asked.key.as_bytes()) ^ response_time.0),
    }
}

/// When the origin was asked, where this node knows that it was.
fn asked_origin_at(received: &Received) -> Option<BootTime> {
    (received.fetched.vouched.is_none() || received.end_to_end).then_some(received.asked_at)
}

/// Why a 304 does not make a stored response good again.
enum Unconfirmed {
    /// It speaks of another response, or adds more than one response may have.
    Another,
    /// The response that a 304 makes of the stored one may not be stored.
    NotStorable(NotStorable),
}

/// Combines the stored response with a 304. The result is judged by all its fields, as a complete response would be. Also the names of
/// the fields that are for the client of this request alone.
fn confirm<U: Upstream>(
    gateway: &Gateway<U>,
    asked: &Asked,
    stored: &StoredResponse,
    received: &Received,
) -> Result<(StoredResponse, Vec<HeaderName>), Unconfirmed> {
    let mut news = received.fetched.response.headers().clone();
    if !validation::confirms(&stored.headers, &news) {
        return Err(Unconfirmed::Another);
    }
    let whole = validation::freshened(&stored.received(), &news);
    if fields::is_too_large(&whole) {
        // Each 304 may add fields, so the head of a response could grow without limit.
        return Err(Unconfirmed::Another);
    }
    if !Bug::ConfirmationUnjudged.is_planted() {
        is_storable(asked, stored.status, &whole).map_err(Unconfirmed::NotStorable)?;
    }
    let vary = if news.contains_key(header::VARY) {
        let said = vary_key(gateway, asked, Purpose::Shared, &whole).map_err(Unconfirmed::NotStorable)?;
        if said.has_fields_of(&stored.vary) { stored.vary.clone() } else { said }
    } else {
        stored.vary.clone()
    };
    if gateway.node.tier == Tier::Edge {
        fields::strip_for_client(&mut news);
    }
    let own = unshared(&whole);
    for name in &own {
        news.remove(name);
    }
    news.remove(header::TRAILER);
    // The cache's own additions to the stored head stay as they are.
    for own in [header::VIA, fields::CACHE_STATUS, header::AGE] {
        if own != header::AGE || !news.contains_key(header::AGE) {
            news.remove(own);
        }
    }
    let mut headers = fields::compact(&validation::freshened(&stored.headers, &news));
    for name in &own {
        headers.remove(name);
    }
    headers.remove(header::AGE);
    let freshness = freshness(asked, stored.status, &whole, received.times);
    if partial::strong_validator(&stored.headers).is_none() {
        // What the bytes came with is what can tell them from others, whatever the 304 says of them by now.
        headers.remove(header::ACCEPT_RANGES);
        if let Some(etag) = stored.headers.get(header::ETAG) {
            headers.insert(header::ETAG, etag.clone());
        }
    }
    let codable = is_codable(gateway, asked, stored.status, &headers, Some(stored.body.len()));
    if codable {
        coding::vary(&mut headers);
    }
    let mut confirmed = StoredResponse::new(stored.target.clone(), stored.status, headers, vary, freshness, stored.body.clone());
    confirmed.tags = field::tags(&whole).unwrap_or_default();
    confirmed.hidden = hidden(gateway, &whole);
    confirmed.asked_origin_at = asked_origin_at(received);
    confirmed.codings = codable.then(|| Arc::new(stored.codings.as_ref().map(|c| c.anew()).unwrap_or_default()));
    Ok((confirmed.with_clean_through(received.clean_through), own))
}

/// Whether this node may give it in other codings.
fn is_codable<U: Upstream>(gateway: &Gateway<U>, asked: &Asked, status: StatusCode, headers: &HeaderMap, length: Option<u64>) -> bool {
    let rule = &asked.site.state.spec.compression;
    gateway.codes(&asked.site) && coding::is_codable(status, headers, length, &rule.types, rule.min_size)
}

async fn receive<U: Upstream>(
    gateway: &Rc<Gateway<U>>,
    asked: &Asked,
    purpose: Purpose,
    fill: &Arc<Fill>,
    mut received: Received,
    relay: Option<oneshot::Sender<Relayed>>,
    part: Option<u64>,
) -> Result<(), FetchFailed> {
    let status = received.fetched.response.status();
    let length = received.fetched.length;
    let in_slices = part.is_some()
        || (status == StatusCode::OK
            && length.is_some_and(|l| l > LARGE)
            && !received.fetched.close_delimited
            && gateway.store.ranges(&asked.key) != Ranges::Whole
            && partial::takes_ranges(received.fetched.response.headers()));
    let max_object = asked.site.state.spec.cache.max_object;
    let most = if in_slices { max_object } else { max_object.min(gateway.store.most_body()) };
    let (vary, freshness) = match may_store(gateway, asked, purpose, &received.fetched, most, received.times) {
        Ok(kept) => kept,
        Err(why) => {
            note_unshared(gateway, asked, status, why);
            if let Some(relay) = relay {
                let Fetched { response, length, close_delimited, .. } = received.fetched;
                let own = Own { response, clean_through: received.clean_through, length, unframed: close_delimited, why: Some(why) };
                let _ = relay.send(Relayed::Whole(own));
            }
            fill.unshared();
            return Ok(());
        }
    };
    note_sharing(gateway, asked, &received, &freshness);
    // One with tags that cannot be read is not storable.
    let tags = field::tags(received.fetched.response.headers()).unwrap_or_default();
    let mut headers = stored_headers(gateway, received.fetched.response.headers());
    let codable = is_codable(gateway, asked, status, &headers, length);
    if codable {
        coding::vary(&mut headers);
    }
    let head = FillHead { status, headers, freshness, tags, vary, clean_through: received.clean_through, length, codable };
    let head = Arc::new(head);
    let asked_at = asked_origin_at(&received);
    // Before the head wakes who waits for it.
    let received_head = received.fetched.response.headers();
    relay_own(relay, received_head, unshared(received_head));
    let hidden = hidden(gateway, received_head);
    let finished = |body| {
        let mut response = StoredResponse::new(asked.target.clone(), status, head.headers.clone(), head.vary.clone(), head.freshness, body);
        response.tags.clone_from(&head.tags);
        response.hidden.clone_from(&hidden);
        response.asked_origin_at = asked_at;
        response.codings = is_codable(gateway, asked, status, &head.headers, Some(response.body.len())).then(Arc::default);
        Arc::new(response.with_clean_through(head.clean_through))
    };
    if let (true, Some(length)) = (in_slices, length) {
        let (first, body) = (part.unwrap_or(0), gateway.store.begin_body(&asked.key, length));
        let slice = slices::coming(gateway, &body, first, fill.begun);
        let response = finished(body);
        keep(gateway, asked, fill, &response);
        fill.stored(Arc::clone(&response), Some(status));
        gateway.fills.remove(&asked.key, fill);
        let from = received.fetched.response.body_mut();
        // Whoever reads it learns how it ends; what came whole is kept.
        let _ = slices::take_in(
            gateway,
            asked,
            &response.body,
            first,
            slice,
            (from, bytes::Bytes::new()),
            part.is_none().then_some(slices::LINGER),
        )
        .await;
        return Ok(());
    }
    fill.head(Arc::clone(&head));
    if !stream(gateway, asked, fill, received.fetched.response.body_mut(), length, most).await? {
        return Ok(());
    }
    let response = finished(gateway.store.keep_body(&asked.key, &fill.done()));
    fill.is_in_store();
    keep(gateway, asked, fill, &response);
    if let (Some(_), Some(coding)) = (&response.codings, asked.accepted.wanted().next()) {
        gateway.code(asked, &response, coding);
    }
    Ok(())
}

fn keep<U: Upstream>(gateway: &Gateway<U>, asked: &Asked, fill: &Fill, response: &Arc<StoredResponse>) {
    if fill.is_forgotten() {
        return;
    }
    gateway.store.put(&asked.key, response);
    // Looked at again after it is there: an invalidation forgets the fill first and empties the store then.
    if fill.is_forgotten() {
        gateway.store.drop_response(&asked.key, response);
    }
}

/// How long the readers of a body that is not kept wait for one that does not move.
const LAG: Duration = Duration::from_secs(30);
/// Time without any reader after which a fill is judged. Longer than the time from a head's arrival to its first reader.
pub const UNREAD_FOR: Duration = Duration::from_millis(500);
/// Time without a waiting request after which a fetch ends before its head, where a site has many of them.
const LEFT_FOR: Duration = Duration::from_millis(50);
/// Largest body in bytes that is still stored when the bodies under way have used up their memory budget.
const LEAST_PASSED_BY: u64 = 1 << 20;
/// Pacing starts at one part in this many of that budget: bodies then stay close to their readers, so that a few slow readers do not
/// keep other bodies from being stored.
const PACED_FROM: u64 = 8;

/// Pushes the body into the fill; `false`: it grew too large to be kept and was handed through.
async fn stream<U: Upstream>(
    gateway: &Gateway<U>,
    asked: &Asked,
    fill: &Arc<Fill>,
    body: &mut UpstreamBody,
    length: Option<u64>,
    most: u64,
) -> Result<bool, FetchFailed> {
    let rule = &asked.site.state.spec.cache;
    let (mut total, mut passing) = (0, false);
    let mut abandoned = pin!(is_not_worth_its_end(asked, fill, length));
    loop {
        let data = tokio::select! {
            biased;
            () = &mut abandoned => return Err(FetchError::Abandoned.into()),
            data = body.data() => data,
        };
        let Some(data) = data else { break };
        let data = match data {
            Err(_) if Bug::TornBodyIsWhole.is_planted() => break,
            data => data?,
        };
        total = fill.push(&data);
        if !passing && (total > most || (total > LEAST_PASSED_BY && gateway.fills.held() > gateway.store.most_body())) {
            passing = true;
            gateway.store.pass(&asked.key, Passed::Everyones(Some(NotStorable::TooLarge)));
            gateway.fills.remove(&asked.key, fill);
            fill.pass_by();
        }
        if passing && !keep_pace(gateway, fill).await {
            // Whoever still comes to it gets an error rather than silence.
            return Err(FetchError::Abandoned.into());
        }
        let missing = length.map(|l| l.saturating_sub(total));
        if total > rule.finish_size && missing.is_none_or(|m| m > rule.finish_size) && !fill.is_read() && !fill.is_for_later() {
            tokio::select! {
                biased;
                () = &mut abandoned => return Err(FetchError::Abandoned.into()),
                () = fill.read() => {}
            }
        }
        if !passing && much_is_held(gateway) {
            tokio::select! {
                biased;
                () = &mut abandoned => return Err(FetchError::Abandoned.into()),
                () = fill.quickest_reader_near() => {}
            }
        }
    }
    if length.is_some_and(|l| l != total) && !Bug::TornBodyIsWhole.is_planted() {
        return Err(FetchError::Broken.into());
    }
    if passing {
        fill.done();
    }
    Ok(!passing)
}

/// Resolves once a fill has no readers and finishing its body is not worth it: much of the `length` bytes is missing, or an unknown
/// part of them, or fetching takes long. The fill has failed then.
pub async fn is_not_worth_its_end(asked: &Asked, fill: &Fill, length: Option<u64>) {
    let rule = &asked.site.state.spec.cache;
    loop {
        fill.unread().await;
        if tokio::time::timeout(UNREAD_FOR, fill.read()).await.is_ok() {
            continue;
        }
        if fill.is_for_later() {
            // A fill without a reader from the start is for later requests, which would start it again and again.
            let late = tokio::time::timeout(asked.site.state.spec.origin.total_timeout, fill.read()).await.is_err();
            if late && fill.is_given_up() {
                return;
            }
            continue;
        }
        let missing = length.map(|l| l.saturating_sub(fill.length()));
        if Bug::StreamsOutliveReaders.is_planted() {
            continue;
        }
        let is_much = missing.is_none_or(|m| m > rule.finish_size);
        if (is_much || tokio::time::timeout(rule.finish_time, fill.read()).await.is_err()) && fill.is_given_up() {
            return;
        }
    }
}

/// Waits for the head of an answer, for as long as a request waits for the fill. A few fetches go on after their clients have left: those
/// may ask again soon, an answer that takes longer than they wait would never be stored otherwise, and a server that hangs would never
/// be found out.
///
/// # Errors
/// The fetch failed, or was abandoned.
pub async fn while_wanted<T>(asked: &Asked, fill: &Fill, asking: impl Future<Output = Result<T, FetchFailed>>) -> Result<T, FetchFailed> {
    let is_one_too_many = async {
        loop {
            fill.unread().await;
            if fill.is_for_later() {
                fill.read().await;
                continue;
            }
            if let Some(_one_of_few) = asked.site.counters.leave() {
                fill.read().await;
                continue;
            }
            // A request that has been woken may be on its way.
            if tokio::time::timeout(LEFT_FOR, fill.read()).await.is_err() && !fill.is_for_later() && fill.is_given_up() {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        answer = asking => answer,
        () = is_one_too_many => Err(FetchError::Abandoned.into()),
    }
}

/// Whether the bodies that are under way hold so much memory that each has to hold less.
fn much_is_held<U: Upstream>(gateway: &Gateway<U>) -> bool {
    gateway.fills.held() > gateway.store.most_body() / PACED_FROM
}

/// Waits for the readers of a body that passes by, but not for ever. `false`: it has no readers.
async fn keep_pace<U: Upstream>(gateway: &Gateway<U>, fill: &Fill) -> bool {
    loop {
        let before = fill.positions();
        let window = if much_is_held(gateway) { SMALL_WINDOW } else { WINDOW };
        match tokio::time::timeout(LAG, fill.readers_near(window)).await {
            Ok(true) => return true,
            // The first one may be on its way.
            Ok(false) if tokio::time::timeout(UNREAD_FOR, fill.read()).await.is_err() => return false,
            Ok(false) => {}
            Err(_) => fill.leave_behind(&before, window),
        }
    }
}

/// Records whether later requests for the key wait for one another. They do if they can share one response.
fn note_sharing<U: Upstream>(gateway: &Gateway<U>, asked: &Asked, received: &Received, freshness: &Freshness) {
    if freshness.is_shared_on_arrival() {
        gateway.store.share(&asked.key);
    } else if !received.fetched.stands_in {
        // A shield's stale response says nothing of the next one.
        gateway.store.pass(&asked.key, Passed::Everyones(None));
    }
}

/// Whether a response to `asked`, fetched for this purpose, may be stored, and could answer a later request. If so, the key of its
/// variant and its freshness. `most`: bytes of a body. `times`: when it was asked for, and when its head came.
fn may_store<U: Upstream>(
    gateway: &Gateway<U>,
    asked: &Asked,
    purpose: Purpose,
    fetched: &Fetched,
    most: u64,
    times: (WallTime, WallTime),
) -> Result<(VaryKey, Freshness), NotStorable> {
    let (status, headers) = (fetched.response.status(), fetched.response.headers());
    is_storable(asked, status, headers)?;
    if fetched.length.is_some_and(|l| l > most) || most == 0 {
        return Err(NotStorable::TooLarge);
    }
    if fetched.close_delimited {
        return Err(NotStorable::Unframed);
    }
    let freshness = freshness(asked, status, headers, times);
    freshness.reusable(headers)?;
    Ok((vary_key(gateway, asked, purpose, headers)?, freshness))
}

/// Whether this head lets it be stored.
fn is_storable(asked: &Asked, status: StatusCode, headers: &HeaderMap) -> Result<(), NotStorable> {
    storable::storable(&Exchange {
        request: &asked.headers,
        asked: &asked.directives(),
        status,
        response: headers,
        said: &cache_control::of_response(headers),
        has_default_ttl: asked.site.defaults.ttl.is_some(),
    })?;
    if Bug::UnreadableTagsIgnored.is_planted() {
        return Ok(());
    }
    field::tags(headers).map(drop).map_err(|_| NotStorable::TagsUnreadable)
}

fn vary_key<U: Upstream>(gateway: &Gateway<U>, asked: &Asked, purpose: Purpose, headers: &HeaderMap) -> Result<VaryKey, NotStorable> {
    VaryKey::new(headers, &Outgoing::new(asked, &gateway.node, purpose)).map_err(|no| match no {
        NoVaryKey::Star => NotStorable::VaryStar,
        NoVaryKey::Unreadable => NotStorable::VaryUnreadable,
    })
}

/// Whether the answer to a GET that went upstream as its client asked may be kept for others, and is worth it.
///
/// # Errors
/// The reason why not. `None`: storing is allowed, but would serve no other client.
pub fn answers_others<U: Upstream>(
    gateway: &Gateway<U>,
    asked: &Asked,
    fetched: &Fetched,
    request_time: WallTime,
) -> Result<(), Option<NotStorable>> {
    let headers = fetched.response.headers();
    // A fetch for all would not send this client's own choice of a coding, nor its fields that describe a body.
    let is_chosen = headers.contains_key(header::CONTENT_ENCODING) || fields::describes_a_body(&asked.headers);
    let most = asked.site.state.spec.cache.max_object.min(gateway.store.most_body());
    if !matches!(asked.method, Method::GET | Method::HEAD) {
        return Err(None);
    }
    let times = (request_time, gateway.clock.wall());
    let (vary, freshness) = may_store(gateway, asked, Purpose::OneClient, fetched, most, times).map_err(Some)?;
    let is_found = vary.matches(&gateway.shared_head(asked));
    let is_worth_it = asked.method == Method::GET && !is_chosen && is_found && freshness.is_shared_on_arrival();
    if is_worth_it {
        return Ok(());
    }
    if asked.method == Method::GET && freshness.is_shared_on_arrival() {
        // The next one is fetched for all.
        gateway.store.share(&asked.key);
    }
    Err(None)
}

/// The fields that [`stored_headers`] leaves out at an edge. A later 304 does not change them unless it has them (RFC 9111 section 3.2).
fn hidden<U: Upstream>(gateway: &Gateway<U>, headers: &HeaderMap) -> Option<Box<HeaderMap>> {
    let hidden = if gateway.node.tier == Tier::Edge { fields::hidden(headers) } else { HeaderMap::new() };
    (!hidden.is_empty()).then(|| Box::new(fields::compact(&hidden)))
}

/// The head as it is kept: at an edge ready for clients, at a shield with all that edges need.
fn stored_headers<U: Upstream>(gateway: &Gateway<U>, headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    for name in [header::AGE, header::TRAILER] {
        kept.remove(name);
    }
    for own in unshared(headers) {
        kept.remove(own);
    }
    if gateway.node.tier == Tier::Edge {
        fields::strip_for_client(&mut kept);
    }
    kept.append(header::VIA, gateway.node.via.clone());
    fields::compact(&kept)
}
