//! HTTP/3 for clients (RFC 9114), on quinn: frames, field sections and messages are pure; a connection is one task, which answers what
//! is there at once, such as a memory hit; only what has to wait gets a task of its own.
//!
//! It is our own and not the crate h3, whose 0.0.8 buffers as many bytes as a frame says that it has, knows no extended CONNECT for
//! WebSocket, and asserts where a peer may decide. There is no dynamic table, and no push.

#![forbid(unsafe_code)]

mod code;
mod control;
mod endpoint;
mod exchange;
mod frame;
mod message;
mod qpack;
mod received;
mod routing;
mod server;
mod share;
mod varint;

pub use endpoint::{EndpointSettings, Secret, endpoint};
pub use message::MessageError;
pub use received::Received;
pub use routing::{Port, ports};
pub use server::{EarlyData, ServerSettings, serve};

/// What a fuzzer and a load generator need: the parsers of what a peer sends, and the writers of what it reads.
pub mod parsers {
    pub use crate::code::Broken;
    pub use crate::frame::{Frame, Frames, Kind};
    pub use crate::message::{headers_frame, request, request_frame, response_status, trailers};
}
