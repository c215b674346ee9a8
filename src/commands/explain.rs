//! `tidegate explain`.

use super::{Api, Done, Failure, block_on};
use crate::output;
use clap::Args;
use std::process::ExitCode;
use tidegate_control_types::api::{ExplainRequest, ExplainView};
use tidegate_control_types::explain::{Explained, Variant};

/// What each edge and shield holds for a URL, and what it would do with a request for it
#[derive(Args)]
pub struct Explain {
    url: String,
    /// A field of the request, as "Accept-Language: de"; may be given several times
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    #[command(flatten)]
    api: Api,
}

impl Explain {
    pub fn run(self) -> Done {
        let header = |line: &String| match line.split_once(':') {
            Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
            None => Err(Failure::usage(format!("{line:?} is not a field: write \"Name: value\""))),
        };
        let headers = self.headers.iter().map(header).collect::<Result<_, _>>()?;
        block_on(async {
            let asked = ExplainRequest { url: self.url.clone(), headers };
            let view: ExplainView = self.api.client()?.post("/v1/explain", &asked).await?;
            if self.api.json {
                output::json(&view);
            } else {
                show(&view);
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn show(view: &ExplainView) {
    output::line(&format!("site {}", view.site));
    if let Some(key) = view.nodes.iter().filter_map(|n| n.explained.as_ref()).map(|e| &e.key).find(|k| !k.is_empty()) {
        output::line(&format!("key  {}", key.join(" ")));
    }
    output::line("");
    let next = |e: &Option<Explained>| e.as_ref().map_or("no answer".to_owned(), |e| e.next.as_str().to_owned());
    let why = |e: &Option<Explained>| match e {
        None => "the node is down, cut off from the control plane, or too slow".to_owned(),
        Some(e) if e.attached => e.why.clone(),
        Some(e) => format!("{} (it holds no lease)", e.why),
    };
    let row = |n: &tidegate_control_types::api::NodeExplained| {
        vec![n.name.clone(), n.role.clone(), n.region.clone(), next(&n.explained), why(&n.explained)]
    };
    output::table(&["NODE", "ROLE", "REGION", "NEXT", "WHY"], &view.nodes.iter().map(row).collect::<Vec<_>>());
    let variants = view.nodes.iter().flat_map(|n| n.explained.iter().flat_map(|e| &e.variants).map(|v| (n.name.as_str(), v)));
    let rows: Vec<_> = variants.map(|(node, v)| variant(node, v)).collect();
    if !rows.is_empty() {
        output::line("");
        output::table(&["STORED AT", "", "STATUS", "AGE", "LIFETIME", "PURGES", "BYTES", "CODINGS", "VARIES ON", "ETAG", "TAGS"], &rows);
    }
}

fn variant(node: &str, v: &Variant) -> Vec<String> {
    let vary = v.vary.iter().map(|(name, value)| format!("{name}: {}", value.as_deref().unwrap_or("(absent)")));
    let codings = v.codings.iter().map(|(coding, bytes)| format!("{coding} {bytes}"));
    let place = if v.from_disk { " (disk)" } else { "" };
    vec![
        format!("{node}{place}"),
        if v.selected { "*".into() } else { String::new() },
        v.status.to_string(),
        format!("{} s", v.age),
        format!("{} s by {}", v.lifetime, v.lifetime_by),
        format!("{} through {}", v.standing, v.clean_through),
        if v.bytes_here < v.bytes { format!("{} of {}", v.bytes_here, v.bytes) } else { v.bytes.to_string() },
        codings.collect::<Vec<_>>().join(", "),
        vary.collect::<Vec<_>>().join("; "),
        v.etag.clone().unwrap_or_default(),
        v.tags.join(" "),
    ]
}
