//! `tidegate status` and `tidegate audit`.

use super::{Api, Done, block_on, node};
use crate::output;
use clap::Args;
use std::process::ExitCode;
use tidegate_control_types::api::{AuditView, Status as View};

#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
pub struct Audit {
    #[command(flatten)]
    api: Api,
}

/// Milliseconds since 1970 as people read them.
pub fn time(milliseconds: u64) -> String {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(milliseconds);
    httpdate::fmt_http_date(at).trim_end_matches(" GMT").to_owned()
}

impl Status {
    pub fn run(self) -> Done {
        block_on(async {
            let status: View = self.api.client()?.get("/v1/status").await?;
            if self.api.json {
                output::json(&status);
                return Ok(ExitCode::SUCCESS);
            }
            output::line(&format!(
                "cluster {}, revision {}, {} sites, leader {} (term {})",
                status.cluster, status.revision, status.sites, status.leader, status.term
            ));
            if let Some(zone) = &status.zone {
                output::line(&format!("zone {zone}"));
            }
            output::line("");
            node::table(&status.nodes);
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Audit {
    pub fn run(self) -> Done {
        block_on(async {
            let records: Vec<AuditView> = self.api.client()?.get("/v1/audit").await?;
            if self.api.json {
                output::json(&records);
            } else {
                let rows: Vec<_> = records.into_iter().map(|a| vec![a.index.to_string(), time(a.at), a.by, a.what]).collect();
                output::table(&["REVISION", "AT (UTC)", "BY", "WHAT"], &rows);
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}
