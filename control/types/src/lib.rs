//! The words that every part of the network shares: revisions, sites, commands, events, receipts and
//! the rules of leases. Pure: no IO, no clock, no randomness; whoever needs the time passes it in.

#![forbid(unsafe_code)]

pub mod api;
pub mod authority;
pub mod certificate;
pub mod command;
pub mod event;
pub mod explain;
pub mod fleet;
pub mod lease;
pub mod name;
pub mod node;
pub mod planted;
pub mod purge;
pub mod revision;
pub mod sealed;
pub mod settings;
pub mod site;
pub mod site_file;
pub mod time;
pub mod token;
pub mod wire;

pub use command::{Change, Command};
pub use event::{CatchUp, Certificate, DnsKey, Event, FromNode, SiteState, TicketKey, ToNode};
pub use lease::LeaseTerms;
pub use name::{CertificateName, NodeName, SiteName};
pub use node::{EdgeStanding, NodeReport, NodeState, Role};
pub use purge::{PurgeOrder, Selector};
pub use revision::{Incarnation, Revision};
pub use site::SiteSpec;
pub use time::{BootTime, Clock, WallTime};
