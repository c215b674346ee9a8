//! The ways to the origin: over the region's shields, or directly to the origin's servers.

#![forbid(unsafe_code)]

mod body;
mod connect;
mod framing;
mod health;
mod origin;
mod patience;
mod pool;
mod private;
mod resolve;
mod ring;
mod shields;
mod socket;

pub use health::{Health, probe_all};
pub use origin::{OriginPools, OriginUpstream, Servers};
pub use resolve::Resolver;
pub use ring::ranked;
pub use shields::{EdgeUpstream, Http2Shields, Shield, ShieldTls, ShieldWay, Shields, Unanswered};
pub use socket::prepare;
