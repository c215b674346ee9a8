//! `tidegate cert`.

use super::status::time;
use super::{Api, Done, Failure, block_on};
use crate::output;
use clap::{Args, Subcommand};
use http::Method;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tidegate_client::{Client, ClientError};
use tidegate_control_types::api::{CertificateUpload, CertificateView, CertificatesView, OrderView};
use tidegate_control_types::certificate::OrderStep;
use tidegate_control_types::{CertificateName, SiteName};

#[derive(Subcommand)]
pub enum Cert {
    /// Certificates, the first to expire first, and the orders for new ones
    List(List),
    /// The certificates of a site, or those that were uploaded under a name
    Show(Show),
    /// Upload a certificate; sites use it with [tls] certificate = "NAME". A second one with a key of another kind stands beside it
    Upload(Upload),
    /// Order a site's certificate now, whatever failed before
    Issue(Order),
    /// Order a new one in the place of one that is good
    Renew(Order),
    /// Remove what was uploaded under a name
    Remove(Show),
}

#[derive(Args)]
pub struct List {
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
pub struct Show {
    name: CertificateName,
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
pub struct Upload {
    name: CertificateName,
    /// PEM file: the certificate, then those between it and its authority
    #[arg(long, value_name = "FILE")]
    chain: PathBuf,
    /// PEM file: its private key, without a passphrase
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
pub struct Order {
    site: SiteName,
    /// Say how it comes on, until it is there
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    api: Api,
}

const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Cert {
    pub fn run(self) -> Done {
        block_on(async {
            match self {
                Self::List(c) => {
                    let mut all: CertificatesView = c.api.client()?.get("/v1/certificates").await?;
                    all.certificates.sort_by_key(|c| c.not_after);
                    print(&all, c.api.json);
                }
                Self::Show(c) => print(&c.api.client()?.get(&path(c.name.as_str())).await?, c.api.json),
                Self::Upload(c) => {
                    let read = |file: &PathBuf| std::fs::read_to_string(file).map_err(|e| Failure::new(format!("{}: {e}", file.display())));
                    let body = CertificateUpload { chain: read(&c.chain)?, key: read(&c.key)? };
                    let kept: CertificateView = c.api.client()?.put(&path(c.name.as_str()), &body).await?;
                    if c.api.json {
                        output::json(&kept);
                    } else {
                        output::line(&format!("{} is kept, for {}, until {}", kept.name, kept.hosts.join(", "), time(kept.not_after)));
                    }
                }
                Self::Remove(c) => c.api.client()?.act(Method::DELETE, &path(c.name.as_str())).await?,
                Self::Issue(c) => return order(&c, "issue").await,
                Self::Renew(c) => return order(&c, "renew").await,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn path(name: &str) -> String {
    format!("/v1/certificates/{name}")
}

fn print(all: &CertificatesView, json: bool) {
    if json {
        return output::json(all);
    }
    let row = |c: &CertificateView| {
        vec![c.name.clone(), c.hosts.join(" "), c.algorithm.clone(), c.issuer.clone(), c.days_left.to_string(), c.next.clone()]
    };
    output::table(&["NAME", "HOSTS", "KEY", "ISSUER", "DAYS LEFT", "NEXT"], &all.certificates.iter().map(row).collect::<Vec<_>>());
    for o in &all.orders {
        output::line(&format!("\norder for {} ({}) at {}: {}", o.site, o.hosts.join(", "), o.authority, state(o)));
    }
}

fn step(step: OrderStep) -> &'static str {
    match step {
        OrderStep::Ordering => "the authority is asked for it",
        OrderStep::Validating => "the authority looks whose the hosts are",
        OrderStep::Finalizing => "the certificate is being made",
        OrderStep::Failed => "failed",
    }
}

fn state(o: &OrderView) -> String {
    let open = if o.challenges.is_empty() { String::new() } else { format!(" ({})", o.challenges.join(", ")) };
    let problem = o.problem.as_ref().map(|p| format!(": {p}")).unwrap_or_default();
    let without = if o.left_out.is_empty() { String::new() } else { format!("; left out: {}", o.left_out.join(", ")) };
    let again = o.next_try.filter(|_| o.step == OrderStep::Failed).map(|t| format!("; tried again at {}", time(t))).unwrap_or_default();
    format!("{}{open}{problem}{without}{again}", step(o.step))
}

async fn order(c: &Order, what: &str) -> Done {
    let client = c.api.client()?;
    let name = format!("acme/{}", c.site);
    let before = look(&client, c).await?;
    let asked: CertificatesView = client.post(&format!("{}/{what}", path(c.site.as_str())), &()).await?;
    if !c.watch {
        print(&asked, c.api.json);
        return Ok(ExitCode::SUCCESS);
    }
    let find = |v: &CertificatesView| v.certificates.iter().find(|c| c.name == name).cloned();
    let old = find(&before).filter(|_| what == "renew").map(|c| c.fingerprint);
    let failed_before = before.orders.first().map(|o| o.began);
    let mut said = String::new();
    loop {
        let now = look(&client, c).await?;
        if let Some(order) = now.orders.first() {
            let text = state(order);
            if order.step == OrderStep::Failed && Some(order.began) != failed_before {
                return Err(Failure::new(format!("the order for {} {text}", c.site)));
            }
            if order.step != OrderStep::Failed && text != said {
                output::note(&text);
                said = text;
            }
        } else if let Some(made) = find(&now).filter(|c| Some(&c.fingerprint) != old.as_ref()) {
            if c.api.json {
                output::json(&made);
            } else {
                output::line(&format!(
                    "{} is there, for {}, until {}: {}",
                    made.name,
                    made.hosts.join(", "),
                    time(made.not_after),
                    made.next
                ));
            }
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What there is now; nothing, where there is nothing yet.
async fn look(client: &Client, c: &Order) -> Result<CertificatesView, Failure> {
    match client.get(&path(c.site.as_str())).await {
        Err(ClientError::Problem(p)) if p.status == 404 => Ok(CertificatesView { certificates: Vec::new(), orders: Vec::new() }),
        other => Ok(other?),
    }
}
