//! `tidegate site`.

use super::{Api, Done, Failure, block_on};
use crate::output;
use clap::{Args, Subcommand};
use http::Method;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tidegate_client::{Client, ClientError};
use tidegate_control_types::api::{HostView, SiteVersionView, SiteView};
use tidegate_control_types::site::Shown;
use tidegate_control_types::site_file;

#[derive(Subcommand)]
pub enum Site {
    /// Apply a site file
    Apply(Apply),
    /// Sites
    List(List),
    /// One site's file as it was applied
    Show(Named),
    /// Whether its hosts lead to it, as the world's name servers say
    Hosts(Hosts),
    /// What applying a file would change
    Diff(File),
    /// Versions of a site, newest first
    Versions(Named),
    /// Apply an earlier version again
    Rollback(Rollback),
    /// Remove a site
    Remove(Named),
}

#[derive(Args)]
pub struct File {
    file: PathBuf,
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
pub struct Apply {
    #[command(flatten)]
    file: File,
    /// Refuse if the site is at another revision than this one (0: if it is there at all)
    #[arg(long, value_name = "REVISION")]
    expect: Option<u64>,
    /// As an admin: its hosts are this site's, whatever they show
    #[arg(long)]
    vouch: bool,
}

#[derive(Args)]
pub struct List {
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
pub struct Named {
    name: tidegate_control_types::SiteName,
    #[command(flatten)]
    api: Api,
}

#[derive(Args)]
pub struct Hosts {
    #[command(flatten)]
    site: Named,
    /// Wait until all of them do, as 60s
    #[arg(long, value_name = "TIME", value_parser = tidegate_control_types::settings::parse_duration)]
    wait: Option<Duration>,
}

#[derive(Args)]
pub struct Rollback {
    name: tidegate_control_types::SiteName,
    /// As `site versions` shows it
    revision: u64,
    #[command(flatten)]
    api: Api,
}

/// Reads and checks a site file here, where its name and lines mean something.
fn read(file: &std::path::Path) -> Result<(String, String), Failure> {
    let name = file.display().to_string();
    let source = std::fs::read_to_string(file).map_err(|e| Failure::new(format!("{name}: {e}")))?;
    let spec = site_file::read(&name, &source).map_err(Failure::new)?;
    Ok((spec.name.to_string(), source))
}

fn print(site: &SiteView, json: bool, what: &str) {
    if json {
        return output::json(site);
    }
    output::line(&format!("{} {what} at revision {}: {}", site.name, site.revision, site.hosts.join(", ")));
    if let Some(cname) = &site.cname {
        output::line(&format!("point its hosts here: CNAME {cname}"));
    }
    if !site.unshown.is_empty() {
        let (hosts, name) = (site.unshown.join(", "), &site.name);
        output::line(&format!("not served until they show whose they are: {hosts} (tidegate site hosts {name})"));
    }
}

async fn current(client: &Client, name: &str) -> Result<Option<SiteView>, Failure> {
    match client.get::<SiteView>(&format!("/v1/sites/{name}")).await {
        Ok(site) => Ok(Some(site)),
        Err(ClientError::Problem(p)) if p.status == 404 => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// How long to wait before the world is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(2);

async fn hosts(c: &Hosts) -> Done {
    let (client, path) = (c.site.api.client()?, format!("/v1/sites/{}/hosts", c.site.name));
    let ask = || client.get::<Vec<HostView>>(&path);
    let lead = |all: &[HostView]| all.iter().all(|h| h.held && h.lost.is_none());
    let mut all = ask().await?;
    if let Some(wait) = c.wait {
        let _ = tokio::time::timeout(wait, async {
            while !lead(&all) {
                tokio::time::sleep(ASK_AGAIN).await;
                all = ask().await?;
            }
            Ok::<_, ClientError>(())
        })
        .await;
    }
    if c.site.api.json {
        output::json(&all);
    } else {
        let shown = |h: &HostView| match h.shown {
            Shown::Cname => "by CNAME",
            Shown::Txt => "by TXT",
            Shown::Vouched => "an admin vouches",
            Shown::No => "not shown",
        };
        let served = |h: &HostView| match (h.held, h.lost) {
            (true, None) => "yes".to_owned(),
            (true, Some(lost)) => format!("for a week from {}", super::status::time(lost)),
            (false, _) => "no".to_owned(),
        };
        let row = |h: &HostView| vec![h.host.clone(), shown(h).to_owned(), served(h), h.problem.clone().unwrap_or_default()];
        output::table(&["HOST", "OWNER", "SERVED", "WHAT IS MISSING"], &all.iter().map(row).collect::<Vec<_>>());
    }
    Ok(if lead(&all) { ExitCode::SUCCESS } else { ExitCode::from(75) })
}

impl Site {
    pub fn run(self) -> Done {
        block_on(async {
            match self {
                Self::Apply(c) => {
                    let (name, source) = read(&c.file.file)?;
                    let site = c.file.api.client()?.apply_site(&name, &source, c.expect, c.vouch).await?;
                    print(&site, c.file.api.json, "is");
                }
                Self::List(c) => {
                    let sites: Vec<SiteView> = c.api.client()?.get("/v1/sites").await?;
                    if c.api.json {
                        output::json(&sites);
                    } else {
                        let rows: Vec<_> = sites
                            .into_iter()
                            .map(|s| vec![s.name, s.revision.to_string(), s.hosts.join(", "), s.cname.unwrap_or_default()])
                            .collect();
                        output::table(&["NAME", "REVISION", "HOSTS", "CNAME"], &rows);
                    }
                }
                Self::Show(c) => {
                    let site: SiteView = c.api.client()?.get(&format!("/v1/sites/{}", c.name)).await?;
                    if c.api.json { output::json(&site) } else { output::line(site.source.trim_end()) }
                }
                Self::Hosts(c) => return hosts(&c).await,
                Self::Diff(c) => return diff(&c).await,
                Self::Versions(c) => {
                    let versions: Vec<SiteVersionView> = c.api.client()?.get(&format!("/v1/sites/{}/versions", c.name)).await?;
                    if c.api.json {
                        output::json(&versions);
                    } else {
                        let rows: Vec<_> =
                            versions.into_iter().map(|v| vec![v.revision.to_string(), super::status::time(v.at), v.by]).collect();
                        output::table(&["REVISION", "AT (UTC)", "BY"], &rows);
                    }
                }
                Self::Rollback(c) => {
                    let body = serde_json::json!({ "revision": c.revision });
                    let site: SiteView = c.api.client()?.post(&format!("/v1/sites/{}/rollback", c.name), &body).await?;
                    print(&site, c.api.json, "is back");
                }
                Self::Remove(c) => {
                    c.api.client()?.act(Method::DELETE, &format!("/v1/sites/{}", c.name)).await?;
                    if !c.api.json {
                        output::line(&format!("{} is removed", c.name));
                    }
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// Exits 0 where nothing would change and 1 where something would, as `diff` does.
async fn diff(c: &File) -> Done {
    let (name, new) = read(&c.file)?;
    let old = current(&c.api.client()?, &name).await?;
    let old_source = old.as_ref().map(|s| s.source.clone()).unwrap_or_default();
    if c.api.json {
        output::json(
            &serde_json::json!({ "name": name, "revision": old.map(|s| s.revision), "changed": old_source != new, "old": old_source, "new": new }),
        );
    } else {
        for line in line_diff(&old_source, &new) {
            output::line(&line);
        }
    }
    Ok(if old_source == new { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Lines that went (`-`) and came (`+`), around those that stay, by the longest common subsequence. Site files are short.
fn line_diff(old: &str, new: &str) -> Vec<String> {
    let (a, b): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let mut common = vec![vec![0u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] = if a[i] == b[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, Vec::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            out.push(format!("  {}", a[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            out.push(format!("- {}", a[i]));
            i += 1;
        } else {
            out.push(format!("+ {}", b[j]));
            j += 1;
        }
    }
    if a == b { Vec::new() } else { out }
}

#[cfg(test)]
mod tests {
    use super::line_diff;

    #[test]
    fn a_diff_shows_what_goes_and_comes() {
        assert_eq!(line_diff("a\nb\nc", "a\nx\nc"), ["  a", "- b", "+ x", "  c"]);
        assert!(line_diff("a", "a").is_empty());
        assert_eq!(line_diff("", "a"), ["+ a"]);
    }
}
