//! HTTP/2 at both ends, on the crate h2: a server for clients and edges, a client for shields and origins. Both carry what the
//! pipeline needs of the protocol: interim responses, trailers, and bodies of which a torn one is never taken for whole.
//!
//! A connection is one task. The server answers what is there at once, such as a memory hit, within it; only what has to wait gets a
//! task of its own.

#![forbid(unsafe_code)]

mod body;
mod client;
mod keep_alive;
mod pipe;
mod server;
#[cfg(test)]
mod tests;
mod windows;

pub use body::Received;
pub use client::{ClientSettings, Sender, Slot, connect};
pub use keep_alive::KeepAlive;
pub use server::{ServerSettings, serve};
pub use windows::Windows;

/// A connection or a stream failed.
pub use h2::{Error, Reason};
