//! `tidegate control ca`.

use super::status::time;
use super::{Api, Done, Failure, block_on};
use crate::output;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tidegate_certs::ca::{certificate_pem, from_pem};
use tidegate_certs::{Root, identity};
use tidegate_control::ControlSettings;
use tidegate_control_types::Clock;
use tidegate_control_types::api::{CaRequestView, CaUpload, CaView, IssuingView};
use tidegate_node::SystemClock;

#[derive(Subcommand)]
pub enum Ca {
    /// The root, the authorities that issue nodes' certificates, and which nodes have one of which
    Show(Show),
    /// Make the next issuing authority, with the root's key that is in the log
    Rotate(Show),
    /// Believe an issuing authority no more that does not sign any longer
    Retire(Retire),
    /// Write the root's key, out of a backup, to a file that is to be kept offline
    SaveRoot(SaveRoot),
    /// Take the root's key out of the log, once it is kept elsewhere
    DropRoot(Show),
    /// Ask for what the root, which is offline, is to sign
    Request(Request),
    /// Sign a request with the root's key; asks no control node
    Sign(Sign),
    /// Bring what the root has signed: it issues from now on
    Install(Install),
}

#[derive(Args)]
pub struct Show {
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
pub struct Retire {
    /// Its fingerprint, or how that begins
    fingerprint: String,
    /// Even where a node may still need it: that one has to enrol anew then
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
pub struct SaveRoot {
    /// The settings of a control node, for its cluster key
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// What `control backup` saved
    backup: PathBuf,
    /// Where to; it must not exist yet
    file: PathBuf,
}

#[derive(Args)]
pub struct Request {
    /// Where to
    file: PathBuf,
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
pub struct Sign {
    /// The network's CA, as `control init` wrote it
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    #[arg(long, value_name = "FILE")]
    root_key: PathBuf,
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// Where to
    file: PathBuf,
}

#[derive(Args)]
pub struct Install {
    /// What `control ca sign` wrote
    file: PathBuf,
    #[command(flatten)]
    api: Api,
}

fn read(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|e| Failure::new(format!("{}: {e}", file.display())))
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(file, text).map_err(|e| Failure::new(format!("{}: {e}", file.display())))
}

fn pem(file: &Path, kind: &str) -> Result<Vec<u8>, Failure> {
    from_pem(&read(file)?, kind).map_err(|e| Failure::new(format!("{}: {e}", file.display())))
}

impl Ca {
    pub fn run(self) -> Done {
        match self {
            Self::SaveRoot(c) => {
                let settings = ControlSettings::from_file(&c.config)?;
                tidegate_control::backup::save_root(&settings, &c.backup, &c.file)?;
                output::line(&format!(
                    "The root's key is in {}: keep it offline, and the backup away from the cluster key.",
                    c.file.display()
                ));
                output::line("Then: tidegate control ca drop-root");
                Ok(ExitCode::SUCCESS)
            }
            Self::Sign(c) => c.run(),
            online => block_on(online.ask()),
        }
    }

    async fn ask(self) -> Done {
        match self {
            Self::Show(c) => print(&c.api.client()?.get("/v1/ca").await?, c.api.json),
            Self::Rotate(c) => print(&c.api.client()?.post("/v1/ca/rotate", &json!({})).await?, c.api.json),
            Self::Install(c) => {
                let upload = CaUpload { certificate: read(&c.file)? };
                print(&c.api.client()?.post("/v1/ca/install", &upload).await?, c.api.json);
            }
            Self::Request(c) => {
                let made: CaRequestView = c.api.client()?.post("/v1/ca/request", &json!({})).await?;
                write(&c.file, &made.request)?;
                output::line(&format!(
                    "Where the root's key is: tidegate control ca sign --root ca.pem --root-key FILE --request {} FILE",
                    c.file.display()
                ));
            }
            Self::DropRoot(c) => {
                c.api.client()?.act(Method::DELETE, "/v1/ca/root-key").await?;
                output::line(
                    "The root's key is part of the network's state no more. Earlier backups have it still, sealed, and so have the control nodes' disks until their next snapshot.",
                );
            }
            Self::Retire(c) => {
                let client = c.api.client()?;
                let all: CaView = client.get("/v1/ca").await?;
                let mut found = all.issuing.iter().filter(|i| i.fingerprint.starts_with(&c.fingerprint.to_ascii_lowercase()));
                let (Some(one), None) = (found.next(), found.next()) else {
                    return Err(Failure::usage(format!("{:?} is not the beginning of one issuing authority's fingerprint", c.fingerprint)));
                };
                client.act(Method::DELETE, &format!("/v1/ca/issuing/{}?force={}", one.fingerprint, c.force)).await?;
                output::line(&format!("{} is retired: nobody believes what it signed.", one.fingerprint));
            }
            Self::SaveRoot(_) | Self::Sign(_) => {}
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Sign {
    fn run(self) -> Done {
        let now = SystemClock.wall().as_secs();
        let root = Root::open(&pem(&self.root, "CERTIFICATE")?, &pem(&self.root_key, "PRIVATE KEY")?).map_err(Failure::new)?;
        let certificate = root.sign_issuing(&pem(&self.request, "CERTIFICATE REQUEST")?, now).map_err(Failure::new)?;
        write(&self.file, &certificate_pem(&certificate))?;
        let end = identity::not_after(&certificate).map_err(Failure::new)?;
        output::line(&format!("Signed, good until {}. Now: tidegate control ca install {}", time(end * 1000), self.file.display()));
        Ok(ExitCode::SUCCESS)
    }
}

fn print(ca: &CaView, json: bool) {
    if json {
        return output::json(ca);
    }
    let place = if ca.root_key_in_log { "in the log, sealed" } else { "offline" };
    output::line(&format!("root {} until {}, its key {place}\n", ca.root, time(ca.root_not_after)));
    let row = |i: &IssuingView| {
        let state = if i.signs { "signs" } else { "believed" };
        vec![i.fingerprint.clone(), state.into(), time(i.made), time(i.not_after), i.nodes.join(" ")]
    };
    output::table(&["ISSUING", "STATE", "MADE", "UNTIL", "NODES"], &ca.issuing.iter().map(row).collect::<Vec<_>>());
    for retired in &ca.retired {
        output::line(&format!("{retired}  retired"));
    }
    if !ca.unheard.is_empty() {
        output::line(&format!("\nNot heard of: {}", ca.unheard.join(" ")));
    }
    if ca.requested {
        output::line("\nA request waits for the root: tidegate control ca sign, then install");
    }
}
