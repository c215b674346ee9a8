//! The origin shield: a gateway whose clients are the edges of its region. It speaks HTTP/2 over mutual TLS with them and
//! nothing else; what they demand of a fetch comes in fields of their own.

#![forbid(unsafe_code)]

mod run;
mod settings;
mod worker;

pub use run::{Bound, run};
pub use settings::ShieldSettings;
pub use worker::asked;
