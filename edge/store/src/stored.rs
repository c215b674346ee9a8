//! A stored response: its head, what decides about its reuse, and where its body is.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tidegate_cache::{BootTime, Incarnation, Revision};
use tidegate_cache::{Freshness, Target, VaryKey};

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
}

#[derive(Debug)]
pub struct StoredResponse {
    pub target: Target,
    pub status: StatusCode,
    /// End to end, as they came, tags among them.
    pub headers: HeaderMap,
    pub tags: Vec<Box<str>>,
    pub vary: VaryKey,
    pub freshness: Freshness,
    pub body: Body,
    /// Whose log `clean_through` counts in.
    pub incarnation: Incarnation,
    /// The index at or after which its fetch, or its confirmation, began: which of two responses is the newer one.
    pub begun: u64,
    /// The index through which it is known not to be purged; only ever raised, by whoever checked it.
    clean_through: AtomicU64,
    /// When the origin was last asked about it end to end, if it was this node's own doing.
    pub asked_origin_at: Option<BootTime>,
    /// It came from the disk tier: perhaps from an earlier life of this node, which knew of purges that this one does not.
    pub from_disk: bool,
    /// A newer one has taken its place.
    replaced: AtomicBool,
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
        let tags = tidegate_cache::field::tags(&headers);
        Self {
            target,
            status,
            headers,
            tags,
            vary,
            freshness,
            body,
            incarnation: Incarnation(0),
            begun: 0,
            clean_through: AtomicU64::new(0),
            asked_origin_at: None,
            from_disk: false,
            replaced: AtomicBool::new(false),
        }
    }

    /// About how many bytes it takes beside its key, chunks apart.
    #[must_use]
    pub fn weight(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(n, v)| n.as_str().len() + v.len() + 32).sum();
        let tags: usize = self.tags.iter().map(|t| t.len() + 16).sum();
        let body = if let Body::Whole(b) = &self.body { b.len() } else { 0 };
        std::mem::size_of::<Self>() + headers + tags + self.vary.weight() + self.target.host.len() + self.target.path_and_query.len() + body
    }
}
