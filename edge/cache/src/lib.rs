//! What a shared cache may store, reuse, revalidate and combine (RFC 9111), under which key, and the purge check.
//! Pure: messages, the time and the ledger come in as arguments, decisions go out as values.

#![forbid(unsafe_code)]

pub mod cache_control;
pub mod cache_status;
pub mod coding;
pub mod conditional;
pub mod field;
pub mod freshness;
pub mod key;
pub mod ledger;
pub mod partial;
pub mod range;
pub mod reuse;
pub mod storable;
pub mod validation;
pub mod vary;

pub use cache_status::{CacheStatus, ForwardReason};
pub use coding::{Accepted, Coding};
pub use freshness::{Freshness, FreshnessDefaults};
pub use key::{CacheKey, Target};
pub use ledger::{Ledger, Scope, Standing};
/// Revisions and times are the network's own.
pub use tidegate_control_types::{BootTime, Incarnation, Revision, WallTime};
pub use vary::{NoVaryKey, RequestHead, VaryKey};
