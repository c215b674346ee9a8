//! A stored response: its head, what decides about its reuse, and where its body is.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use tidegate_cache::{BootTime, Incarnation, Revision};
use tidegate_cache::{Coding, Freshness, Target, VaryKey};

/// Where a body's bytes are.
#[derive(Clone, Debug)]
pub enum Body {
    /// At most one chunk, beside the head.
    Whole(Bytes),
    /// Pieces of [`crate::CHUNK`] bytes, the last one shorter, each an entry of its own in the store.
    Chunked {
        object: u64,
        length: u64,
        /// They were handed to the disk tier.
        on_disk: bool,
    },
}

impl Body {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Whole(b) => b.len() as u64,
            Self::Chunked { length, .. } => *length,
        }
    }

    /// The bytes from `first` through `last` of a body that is one piece.
    #[must_use]
    pub fn of_whole(&self, first: u64, last: u64) -> Option<Bytes> {
        let Self::Whole(bytes) = self else { return None };
        let (first, end) = (usize::try_from(first).ok()?, usize::try_from(last).ok()?.checked_add(1)?);
        (first < end && end <= bytes.len()).then(|| bytes.slice(first..end))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the bytes are the very same, and not only alike.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => a.as_ptr() == b.as_ptr() && a.len() == b.len(),
            (Self::Chunked { object: a, .. }, Self::Chunked { object: b, .. }) => a == b,
            _ => false,
        }
    }

    /// Bytes beside the head.
    pub(crate) fn weight(&self) -> usize {
        if let Self::Whole(bytes) = self { bytes.len() } else { 0 }
    }
}

/// The same representation in other codings, made from it here: what is decided about the response is decided about these.
#[derive(Clone, Debug, Default)]
pub struct Codings {
    /// In the order of [`Coding::ALL`].
    bodies: [Option<Body>; 3],
    /// Bit by coding: it is there, or on its way, or gains nothing. Shared by all that have grown out of one response.
    begun: Arc<AtomicU8>,
}

impl Codings {
    #[must_use]
    pub fn get(&self, coding: Coding) -> Option<&Body> {
        self.bodies.get(coding as usize)?.as_ref()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Coding, &Body)> {
        Coding::ALL.into_iter().filter_map(|c| Some((c, self.get(c)?)))
    }

    #[must_use]
    pub fn with(mut self, coding: Coding, body: Body) -> Self {
        self.begun.fetch_or(1 << coding as u8, Ordering::AcqRel);
        if let Some(slot) = self.bodies.get_mut(coding as usize) {
            *slot = Some(body);
        }
        self
    }

    /// The same for a response that begins anew with the same bytes.
    #[must_use]
    pub fn anew(&self) -> Self {
        let begun = self.iter().fold(0, |bits, (coding, _)| bits | 1 << coding as u8);
        Self { bodies: self.bodies.clone(), begun: Arc::new(AtomicU8::new(begun)) }
    }

    /// Whether nobody has begun to make it so far; the caller has now.
    #[must_use]
    pub fn begin(&self, coding: Coding) -> bool {
        let bit = 1 << coding as u8;
        self.begun.load(Ordering::Relaxed) & bit == 0 && self.begun.fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// It came to nothing, and may be tried again.
    pub fn give_up(&self, coding: Coding) {
        self.begun.fetch_and(!(1 << coding as u8), Ordering::AcqRel);
    }
}

#[derive(Debug)]
pub struct StoredResponse {
    pub target: Target,
    pub status: StatusCode,
    /// End to end, as clients get them; at a shield all of them.
    pub headers: HeaderMap,
    /// At an edge the fields that clients do not get: tags, and directives for this network only.
    pub hidden: Option<Box<HeaderMap>>,
    pub tags: Vec<Box<str>>,
    pub vary: VaryKey,
    pub freshness: Freshness,
    pub body: Body,
    /// Where it may be given in other codings, which are made when they are first asked for.
    pub codings: Option<Arc<Codings>>,
    /// Whose log `clean_through` counts in.
    pub incarnation: Incarnation,
    /// The index at or after which its fetch, or its confirmation, began: which of two responses is the newer one.
    pub begun: u64,
    /// The index through which it is known not to be purged; only ever raised, by whoever checked it.
    clean_through: AtomicU64,
    /// When the origin was last asked about it end to end, if it was this node's own doing.
    pub asked_origin_at: Option<BootTime>,
    /// Pieces of its body may be missing, and can be fetched by themselves.
    pub in_slices: bool,
    /// It came from the disk tier: perhaps from an earlier life of this node, which knew of purges that this one does not.
    pub from_disk: bool,
    /// A newer one has taken its place.
    replaced: AtomicBool,
    /// How often it was asked for of late, beside other variants; bounded.
    wanted: AtomicU8,
}

impl StoredResponse {
    #[must_use]
    pub fn clean_through(&self) -> Revision {
        Revision::new(self.incarnation, self.clean_through.load(Ordering::Acquire))
    }

    #[must_use]
    pub fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire)
    }

    pub(crate) fn replace(&self) {
        self.replaced.store(true, Ordering::Release);
    }

    #[must_use]
    pub(crate) fn wanted(&self) -> u8 {
        self.wanted.load(Ordering::Relaxed)
    }

    /// It was asked for. Counts that are lost in a race do not matter.
    pub(crate) fn note_wanted(&self, most: u8) {
        let before = self.wanted();
        if before < most {
            self.wanted.store(before + 1, Ordering::Relaxed);
        }
    }

    pub(crate) fn forget_wanted(&self, count: u8) {
        if count > 0 {
            self.wanted.store(self.wanted().saturating_sub(count), Ordering::Relaxed);
        }
    }

    /// It takes the place of `other`, for the same requests.
    pub(crate) fn inherit_wanted(&self, other: &Self) {
        self.wanted.store(other.wanted(), Ordering::Relaxed);
    }

    /// It passed the purge check against a ledger that knows all through `index`.
    pub fn raise_clean_through(&self, index: u64) {
        // Mostly it is there already, and a shared line is not written to for nothing.
        if self.clean_through.load(Ordering::Acquire) < index {
            self.clean_through.fetch_max(index, Ordering::AcqRel);
        }
    }

    #[must_use]
    pub fn with_clean_through(mut self, revision: Revision) -> Self {
        self.incarnation = revision.incarnation;
        self.begun = revision.index;
        self.clean_through = AtomicU64::new(revision.index);
        self
    }

    /// A response that was just received, clean through nothing yet.
    #[must_use]
    pub fn new(target: Target, status: StatusCode, headers: HeaderMap, vary: VaryKey, freshness: Freshness, body: Body) -> Self {
        // One whose tags cannot be read is not stored.
        let tags = tidegate_cache::field::tags(&headers).unwrap_or_default();
        let in_slices = matches!(body, Body::Chunked { .. }) && tidegate_cache::partial::takes_ranges(&headers);
        Self {
            target,
            status,
            headers,
            hidden: None,
            tags,
            vary,
            freshness,
            body,
            codings: None,
            incarnation: Incarnation(0),
            begun: 0,
            clean_through: AtomicU64::new(0),
            asked_origin_at: None,
            in_slices,
            from_disk: false,
            replaced: AtomicBool::new(false),
            wanted: AtomicU8::new(0),
        }
    }

    /// The same response, with one coding more.
    #[must_use]
    pub(crate) fn with_coding(&self, coding: Coding, body: Body) -> Self {
        let codings = self.codings.as_ref().map(|c| Arc::new(Codings::clone(c).with(coding, body)));
        Self {
            target: self.target.clone(),
            status: self.status,
            headers: self.headers.clone(),
            hidden: self.hidden.clone(),
            tags: self.tags.clone(),
            vary: self.vary.clone(),
            freshness: self.freshness,
            body: self.body.clone(),
            codings,
            incarnation: self.incarnation,
            begun: self.begun,
            clean_through: AtomicU64::new(self.clean_through().index),
            asked_origin_at: self.asked_origin_at,
            in_slices: self.in_slices,
            from_disk: self.from_disk,
            replaced: AtomicBool::new(false),
            wanted: AtomicU8::new(self.wanted()),
        }
    }

    /// Whether it is `other`, or has grown out of the same by a coding.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let begun = |r: &Self| r.codings.as_ref().map(|c| Arc::as_ptr(&c.begun));
        std::ptr::eq(self, other) || (self.codings.is_some() && begun(self) == begun(other))
    }

    /// All of its fields, as upstream gave them.
    #[must_use]
    pub fn received(&self) -> HeaderMap {
        let mut all = self.headers.clone();
        all.extend(self.hidden.iter().flat_map(|h| h.iter()).map(|(name, value)| (name.clone(), value.clone())));
        all
    }

    /// About how many bytes it takes beside its key, chunks apart.
    #[must_use]
    pub fn weight(&self) -> usize {
        let all = self.headers.iter().chain(self.hidden.iter().flat_map(|h| h.iter()));
        let headers: usize = all.map(|(n, v)| n.as_str().len() + v.len() + 32).sum();
        let tags: usize = self.tags.iter().map(|t| t.len() + 16).sum();
        let body = self.body.weight() + self.codings.iter().flat_map(|c| c.iter()).map(|(_, body)| body.weight()).sum::<usize>();
        std::mem::size_of::<Self>() + headers + tags + self.vary.weight() + self.target.host.len() + self.target.path_and_query.len() + body
    }
}
