//! The edge: listeners, admission and sites in front of the gateway.

#![forbid(unsafe_code)]

mod access_log;
mod admission;
mod certificates;
mod connection;
mod early;
mod figures;
pub mod head;
pub mod proxy_protocol;
mod quic;
mod request;
mod routes;
mod run;
mod settings;
mod websocket;
mod worker;

pub use run::{Bound, run};
pub use settings::{AccessLog, EdgeSettings, Limits};
