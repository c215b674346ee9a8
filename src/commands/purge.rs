//! `tidegate purge`.

use super::{Api, Done, Failure, block_on};
use crate::output;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use std::process::ExitCode;
use std::time::Duration;
use tidegate_client::Client;
use tidegate_control_types::api::{PurgeRequest, Receipt};
use tidegate_control_types::purge::{PurgeType, Selector};
use tidegate_control_types::settings::parse_duration;

#[derive(Args)]
pub struct Purge {
    #[command(subcommand)]
    what: What,
    /// The site; needed for tags where there are several
    #[arg(long, global = true)]
    site: Option<tidegate_control_types::SiteName>,
    /// Make it stale instead of unusable
    #[arg(long, global = true)]
    soft: bool,
    /// How long to wait until it is true everywhere
    #[arg(long, default_value = "10s", global = true)]
    wait: String,
    /// Do not wait
    #[arg(long, conflicts_with = "wait", global = true)]
    no_wait: bool,
    #[command(flatten)]
    api: Api,
}

#[derive(Subcommand)]
enum What {
    /// URLs; scheme and port do not matter
    Url { urls: Vec<String> },
    /// Tags (Surrogate-Key, Cache-Tag, xkey, Cache-Groups)
    Tag { tags: Vec<String> },
    /// HOST/PATH: the path and all below it
    Prefix { prefixes: Vec<String> },
    /// Hosts
    Host { hosts: Vec<String> },
    /// All of a site
    Site { name: tidegate_control_types::SiteName },
    /// Everything of the network
    All,
}

impl Purge {
    pub fn run(self) -> Done {
        let (kind, selectors) = match &self.what {
            What::Url { urls } => (PurgeType::Url, urls.clone()),
            What::Tag { tags } => (PurgeType::Tag, tags.clone()),
            What::Prefix { prefixes } => (PurgeType::Prefix, prefixes.clone()),
            What::Host { hosts } => (PurgeType::Host, hosts.clone()),
            What::Site { .. } => (PurgeType::Site, Vec::new()),
            What::All => (PurgeType::All, Vec::new()),
        };
        if selectors.is_empty() && !matches!(kind, PurgeType::Site | PurgeType::All) {
            return Err(Failure::usage(format!("name at least one {} to purge", kind.as_str())));
        }
        for s in &selectors {
            Selector::parse(kind, s).map_err(Failure::usage)?;
        }
        let wait =
            if self.no_wait { Duration::ZERO } else { parse_duration(&self.wait).map_err(|e| Failure::usage(format!("--wait: {e}")))? };
        let site = if let What::Site { name } = &self.what { Some(name) } else { self.site.as_ref() };
        let request = PurgeRequest { r#type: kind, selectors, site: site.map(ToString::to_string), soft: self.soft };
        block_on(async {
            let receipt = follow(&self.api.client()?, &request, wait).await?;
            print(&receipt, self.api.json);
            Ok(if receipt.done { ExitCode::SUCCESS } else { ExitCode::from(75) })
        })
    }
}

fn applied(receipt: &Receipt) -> u64 {
    receipt.nodes.iter().filter(|n| matches!(n.state.as_str(), "applied" | "silent")).count() as u64
}

/// Purges, then asks for the receipt until it is true, waiting cannot help or the time is over; shows how far it is.
async fn follow(client: &Client, request: &PurgeRequest, wait: Duration) -> Result<Receipt, Failure> {
    const STEP: Duration = Duration::from_millis(500);
    let show = |d: Duration| format!("{}ms", d.as_millis());
    let mut receipt = client.purge(request, &show(wait.min(STEP))).await?;
    let mut left = wait.saturating_sub(STEP);
    let bar = ProgressBar::new(receipt.nodes.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{spinner} purging: {pos} of {len} nodes, {elapsed}") {
        bar.set_style(style);
    }
    while !receipt.done && !left.is_zero() && receipt.nodes.iter().any(|n| n.state == "waiting") {
        bar.set_position(applied(&receipt));
        bar.tick();
        let now = client.receipt(receipt.index, &show(left.min(STEP))).await?;
        if now.revision != receipt.revision {
            return Err(Failure::new("the network was restored from a backup meanwhile, which does not hold this purge: purge once more"));
        }
        receipt = now;
        left = left.saturating_sub(STEP);
    }
    bar.finish_and_clear();
    Ok(receipt)
}

fn print(receipt: &Receipt, json: bool) {
    if json {
        return output::json(receipt);
    }
    let scope = match (&receipt.site, receipt.selectors.len()) {
        (Some(site), 0) => format!("{} {site}", receipt.r#type.as_str()),
        (None, 0) => "everything".into(),
        (_, 1) => format!("{} {}", receipt.r#type.as_str(), receipt.selectors.join("")),
        (_, n) => format!("{n} {}s", receipt.r#type.as_str()),
    };
    if receipt.done {
        output::line(&format!("purged {scope} on all {} nodes (receipt {})", receipt.nodes.len(), receipt.index));
        return;
    }
    output::line(&format!("purge of {scope} is told, and not yet true everywhere (receipt {}):", receipt.index));
    let why = |state: &str| match state {
        "applied" => "has applied it",
        "silent" => "is cut off and answers nothing of this",
        "may_serve" => {
            "is cut off and may still answer with it (when_detached = \"serve\"); if its process is gone: tidegate node remove --dead"
        }
        _ => "has not answered yet",
    };
    let rows: Vec<_> =
        receipt.nodes.iter().map(|n| vec![n.name.clone(), n.role.clone(), n.region.clone(), why(&n.state).to_owned()]).collect();
    output::table(&["NODE", "ROLE", "REGION", ""], &rows);
}
