//! `tidegate dns`: the role, and where it sends clients.

use super::role::Role;
use super::{Api, Done, Failure, block_on};
use crate::output;
use clap::{Args, Subcommand};
use http::Method;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use tidegate_control_types::api::{SteeringRequest, SteeringView, TxtRequest, TxtView, ZoneRequest, ZoneView};
use tidegate_control_types::explain::SteeredEdge;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Dns {
    #[command(subcommand)]
    command: Option<Command>,
    /// The settings (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the settings and exit
    #[arg(long, requires = "config")]
    check: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Where each dns node sends a client for a site, and why
    Explain(Explain),
    /// Sign a zone from now on (DNSSEC)
    Sign(Zone),
    /// The DS record of a signed zone, for its parent
    Ds(Zone),
    /// Sign a zone no longer: only once its DS record has been gone from the parent for as long as caches keep it
    Unsign(Zone),
    /// TXT records in the network's zones
    #[command(subcommand)]
    Txt(Txt),
}

#[derive(Args)]
struct Explain {
    /// <site>, or <site>.<zone>
    name: String,
    /// The client's address, or one of its network
    #[arg(long, value_name = "ADDR")]
    client: IpAddr,
    #[command(flatten)]
    api: Api,
}

impl Dns {
    pub fn is_role(&self) -> bool {
        self.command.is_none()
    }

    pub fn run(self) -> Done {
        match (self.command, self.config) {
            (Some(Command::Explain(explain)), _) => explain.run(),
            (Some(Command::Sign(zone)), _) => zone.sign(),
            (Some(Command::Ds(zone)), _) => zone.ds(),
            (Some(Command::Unsign(zone)), _) => zone.unsign(),
            (Some(Command::Txt(txt)), _) => txt.run(),
            (None, Some(config)) => Role { config, check: self.check }.dns(),
            (None, None) => Err(Failure::usage("which settings? tidegate dns --config FILE; or tidegate dns explain NAME --client ADDR")),
        }
    }
}

/// A name that may stand in a path: what is none there would be another path.
fn in_path(name: &str) -> Result<&str, Failure> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if name.bytes().all(fits) {
        Ok(name)
    } else {
        Err(Failure::usage(format!("{name:?} is no name in a zone, as \"cdn.example.net\" is one")))
    }
}

#[derive(Subcommand)]
enum Txt {
    /// All of them
    List(List),
    /// Give a name these, in place of those that it has
    Set(Set),
    /// Remove those of a name
    Remove(Remove),
}

#[derive(Args)]
struct List {
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
struct Set {
    /// As _acme-challenge.shop.cdn.example.net
    name: String,
    #[arg(required = true)]
    values: Vec<String>,
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
struct Remove {
    name: String,
    #[command(flatten)]
    api: Api,
}

impl Txt {
    fn run(self) -> Done {
        block_on(async {
            match self {
                Self::List(c) => {
                    let all: Vec<TxtView> = c.api.client()?.get("/v1/dns/txt").await?;
                    if c.api.json {
                        output::json(&all);
                    } else {
                        let row = |t: TxtView| vec![t.name, t.values.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(" ")];
                        output::table(&["NAME", "TEXTS"], &all.into_iter().map(row).collect::<Vec<_>>());
                    }
                }
                Self::Set(c) => {
                    let _: TxtView =
                        c.api.client()?.put(&format!("/v1/dns/txt/{}", in_path(&c.name)?), &TxtRequest { values: c.values }).await?;
                }
                Self::Remove(c) => c.api.client()?.act(Method::DELETE, &format!("/v1/dns/txt/{}", in_path(&c.name)?)).await?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

#[derive(Args)]
struct Zone {
    /// As cdn.example.net
    zone: String,
    #[command(flatten)]
    api: Api,
}

impl Zone {
    fn sign(self) -> Done {
        block_on(async {
            let view: ZoneView = self.api.client()?.post("/v1/dns/zones", &ZoneRequest { zone: self.zone.clone() }).await?;
            if !self.api.json {
                output::line("signed. Once every dns node has the key (tidegate status), put this into the parent zone:");
            }
            self.show(&view)
        })
    }

    fn ds(self) -> Done {
        block_on(async {
            let view: ZoneView = self.api.client()?.get(&format!("/v1/dns/zones/{}", in_path(&self.zone)?)).await?;
            self.show(&view)
        })
    }

    fn unsign(self) -> Done {
        block_on(async {
            self.api.client()?.act(Method::DELETE, &format!("/v1/dns/zones/{}", in_path(&self.zone)?)).await?;
            Ok(ExitCode::SUCCESS)
        })
    }

    fn show(&self, v: &ZoneView) -> Done {
        if self.api.json {
            output::json(v);
        } else {
            output::line(&format!("{}. IN DS {} {} {} {}", v.zone, v.key_tag, v.algorithm, v.digest_type, v.digest));
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Explain {
    fn run(self) -> Done {
        block_on(async {
            let asked = SteeringRequest { name: self.name.clone(), client: self.client.to_string() };
            let view: SteeringView = self.api.client()?.post("/v1/dns/explain", &asked).await?;
            if self.api.json {
                output::json(&view);
            } else {
                show(&view);
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn show(view: &SteeringView) {
    if view.nodes.is_empty() {
        output::line("no node answers for the zone: enrol one (tidegate token create --join dns)");
    }
    for (n, node) in view.nodes.iter().enumerate() {
        if n > 0 {
            output::line("");
        }
        let Some(steered) = &node.steered else {
            output::line(&format!("{} ({}): no answer: it is down, cut off from the control plane, or too slow", node.name, node.region));
            continue;
        };
        output::line(&format!("{} ({}) on {}", node.name, node.region, steered.name));
        let near = if steered.near.is_empty() { "none".to_owned() } else { steered.near.join(", ") };
        output::line(&format!("near the client: {near} (by {}; /{} of the address decides)", steered.near_by, steered.scope));
        output::line(&steered.why);
        let row = |e: &SteeredEdge| {
            let addresses = e.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            vec![
                e.name.clone(),
                e.region.clone(),
                if e.named { "named".into() } else { String::new() },
                e.standing.clone(),
                e.capacity.to_string(),
                format!("{:.0} %", e.room * 100.0),
                addresses,
            ]
        };
        output::table(
            &["EDGE", "REGION", "", "STANDING", "CAPACITY", "ROOM", "ADDRESSES"],
            &steered.edges.iter().map(row).collect::<Vec<_>>(),
        );
    }
}
