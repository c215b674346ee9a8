//! Authoritative DNS for the network's zone. A client is sent to an edge near it that is ready to serve its site rightly: attached to
//! the control plane, not drained, and at the site's newest version or later.
//!
//! A query's way, without any IO: [`Responder::respond`] (`respond.rs`) reads the packet and writes the answer, [`zone`](zone::answer)
//! knows which records a name has, [`steer`](steer::choose) which edges a client is sent to, [`Networks`] where a client is. What they
//! answer from is one [`Table`], replaced as a whole (`current.rs`). `server.rs` is the rim: UDP, where the same answer goes to the same network so often and no more (`limit.rs`), and TCP.

#![forbid(unsafe_code)]

mod cookie;
mod current;
mod explain;
mod figures;
mod limit;
mod loads;
mod maxmind;
mod networks;
mod places;
mod probe;
mod respond;
mod run;
mod server;
mod settings;
mod sign;
#[cfg(test)]
mod simulation;
pub mod steer;
mod table;
#[cfg(test)]
mod tests;
pub mod zone;

pub use cookie::Cookies;
pub use networks::{Networks, NotNetworks};
pub use places::{Place, PlacedRegion};
pub use probe::ProbeSettings;
pub use respond::{MOST_UDP, Reply, Responder, Transport};
pub use run::{Bound, run};
pub use settings::{DnsSettings, ZoneSettings};
pub use sign::Signer;
pub use table::{Edge, NameServer, Site, Table};
