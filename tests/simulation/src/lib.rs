//! A whole network in virtual time, on the code that ships: Raft drivers, state machines, leases, watch streams, ledgers,
//! fills and the purge check are the ones of the program; clocks, disks, the network and the origin are this library's.
//! One seed decides everything, and a run is the same every time.
//!
//! [`Plan`] says what happens, [`World`] lets it happen, [`checker`] says what must hold after every step.

#![forbid(unsafe_code)]
// A simulation fails by saying what it saw; its own mistakes may end it.
#![allow(clippy::panic, clippy::indexing_slicing)]
// Whoever handles an event owns it.
#![allow(clippy::needless_pass_by_value)]

mod api;
mod cache;
pub mod checker;
mod clock;
mod control;
mod disk;
mod exchange;
mod net;
mod origin;
mod plan;
#[path = "../../support/promise.rs"]
pub mod promise;
mod run;
pub mod script;
mod store;
mod story;
mod world;

pub use api::{Answer, CallId};
pub use disk::Fails;
pub use net::{Host, MS, SECOND, Weather};
pub use origin::{Health, PAGES, page_of};
pub use plan::{Action, Ask, Plan, SITES, Setup};
pub use run::{Ended, replay, replay_with, run, run_with, shrink, shrink_with};
pub use tidegate_control_types::planted::{Bug, plant};
pub use tidegate_control_types::site::WhenDetached;
pub use world::World;
