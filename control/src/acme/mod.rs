//! Certificates from an authority (RFC 8555), for the sites that want one the world trusts.
//!
//! The leader alone orders. All that an order needs is in the log: what is asked for, where it stands at the authority, the key, and the
//! answers to its challenges, which every edge and dns node then gives. So whoever leads next goes on with it.

mod authority;
mod due;
mod order;

use crate::settings::AcmeSettings;
use crate::shared::{Control, NotNow};
use due::{Due, Wish};
use instant_acme::{Account, CertificateIdentifier};
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tidegate_control_state::{SiteRecord, State};
use tidegate_control_types::certificate::{OrderRecord, OrderStep, SealedAccount, SealedCertificate, acme_name};
use tidegate_control_types::sealed::SealedName;
use tidegate_control_types::{Change, Clock, SiteName, WallTime};
use tidegate_node::clock::random_u64;

const BY: &str = "leader";
/// Orders of one site in an hour, whoever asks for them and whatever becomes of them.
const BUDGET: usize = 10;
const BUDGET_OF: Duration = Duration::from_secs(3600);
/// Orders under way at once.
const MOST_AT_ONCE: usize = 8;
/// Where an authority has no opinion on renewals, and at most where it gives no answer.
const ASK_AGAIN: Duration = Duration::from_secs(6 * 3600);
/// The first wait where it gives no answer (RFC 9773 section 4.3.3); it doubles from there.
const ASK_AGAIN_SOON: Duration = Duration::from_secs(5);

/// What is not in the log: it is made anew after a change of leader.
#[derive(Default)]
pub struct Acme {
    account: tokio::sync::Mutex<Option<Arc<Account>>>,
    soft: Mutex<Soft>,
}

#[derive(Default)]
struct Soft {
    running: BTreeSet<SiteName>,
    wishes: BTreeMap<SiteName, Wish>,
    renewals: BTreeMap<SiteName, Renewal>,
    /// Askings for renewals that are under way.
    asking: usize,
    /// When the last orders of each site were begun: an account's limits are shared by all sites.
    begun: BTreeMap<SiteName, VecDeque<WallTime>>,
}

impl Soft {
    /// When the authority wants the certificate to be renewed, where it has said so.
    fn suggested(&self, site: &SiteName, certificate: Option<&SealedCertificate>) -> Option<WallTime> {
        self.renewals.get(site).filter(|r| certificate.and_then(|c| c.chain.first()) == Some(&r.leaf)).and_then(|r| r.at)
    }
}

/// What the authority suggests for one certificate (RFC 9773).
struct Renewal {
    leaf: Vec<u8>,
    at: Option<WallTime>,
    ask_again: WallTime,
    /// Askings without an answer since the last one.
    failures: u32,
}

impl Acme {
    /// By whoever asks through the API.
    pub fn ask(&self, site: SiteName, renew: bool) {
        self.soft.lock().wishes.insert(site, if renew { Wish::Renew } else { Wish::Issue });
    }

    /// Whether the site may begin another order within this hour.
    fn has_budget(&self, site: &SiteName, now: WallTime) -> bool {
        let mut soft = self.soft.lock();
        let begun = soft.begun.entry(site.clone()).or_default();
        while begun.front().is_some_and(|at| now.since(*at) >= BUDGET_OF) {
            begun.pop_front();
        }
        begun.len() < BUDGET
    }

    /// The site begins an order.
    fn counts(&self, site: &SiteName, now: WallTime) {
        self.soft.lock().begun.entry(site.clone()).or_default().push_back(now);
    }

    /// What happens next with a site's certificate, for people.
    pub fn next_of(&self, control: &Control, state: &State, site: &SiteName, now: WallTime) -> String {
        let Some(settings) = &control.settings.acme else {
            return "not renewed: the control nodes' settings name no authority any more ([acme])".into();
        };
        let Some(record) = state.site(site.as_str()).filter(|s| s.current().spec.is_automatic()) else {
            return "not renewed: the site has another certificate".into();
        };
        match self.due(settings, state, site, &record.orderable(), now) {
            Due::Begin | Due::GoOn => "a new one is being ordered".into(),
            Due::At(at) => {
                let what = if state.order(site.as_str()).is_some() { "ordered again" } else { "renewed" };
                let (hours, minutes) = (at.since(now).as_secs() / 3600, at.since(now).as_secs() / 60);
                match hours {
                    0 => format!("{what} in {minutes} min"),
                    1..72 => format!("{what} in {hours} h"),
                    _ => format!("{what} in {} d", hours / 24),
                }
            }
        }
    }

    fn due(&self, settings: &AcmeSettings, state: &State, site: &SiteName, names: &[String], now: WallTime) -> Due {
        let certificate = state.certificate(&acme_name(site));
        let soft = self.soft.lock();
        let suggested = soft.suggested(site, certificate);
        due::due(names, &settings.directory, certificate, state.order(site.as_str()), suggested, soft.wishes.get(site).copied(), now)
    }

    /// Whether what an order could not prove is left out of another at once, which counts as begun then.
    fn goes_without(&self, state: &State, failed: &OrderRecord, now: WallTime) -> bool {
        let certificate = state.certificate(&acme_name(&failed.site));
        let suggested = self.soft.lock().suggested(&failed.site, certificate);
        let goes_on = due::goes_without(&failed.ordered(), &failed.left_out, certificate, suggested, now);
        let goes_on = goes_on && self.has_budget(&failed.site, now);
        if goes_on {
            self.counts(&failed.site, now);
        }
        goes_on
    }
}

/// Looks at all sites; what has to be done goes on by itself.
pub fn look(control: &Arc<Control>) {
    let Some(settings) = &control.settings.acme else { return };
    let now = control.clock.wall();
    let mut begin = Vec::new();
    {
        let state = control.raft.state.read();
        for record in state.sites().filter(|s| s.current().spec.is_automatic()) {
            let (site, names) = (record.name(), record.orderable());
            if names.is_empty() || control.acme.soft.lock().running.contains(site) {
                continue;
            }
            match control.acme.due(settings, &state, site, &names, now) {
                Due::Begin if !control.acme.has_budget(site, now) => {}
                Due::Begin => begin.push((site.clone(), Some(names))),
                Due::GoOn => begin.push((site.clone(), None)),
                Due::At(_) => {
                    // There is nothing to do for it.
                    control.acme.soft.lock().wishes.remove(site);
                    if let Some(certificate) =
                        state.certificate(&acme_name(site)).filter(|_| control.acme.is_to_be_asked(site, &state, now))
                    {
                        let (control, site, certificate) = (Arc::clone(control), site.clone(), certificate.clone());
                        tokio::spawn(async move {
                            ask_renewal(&control, site, certificate).await;
                            control.acme.soft.lock().asking -= 1;
                        });
                    }
                }
            }
        }
    }
    for site in leftovers(control) {
        let control = Arc::clone(control);
        tokio::spawn(async move {
            let challenges = Change::ChallengesPut { site: site.clone(), challenges: Vec::new() };
            for change in [challenges, Change::OrderRemove { site: site.clone() }] {
                if let Err(error) = control.change(BY, change).await {
                    tracing::debug!(%site, %error, "an order that nobody wants is not removed yet");
                }
            }
        });
    }
    for (site, names) in begin {
        let Some(running) = Running::begin(control, &site) else { break };
        if names.is_some() {
            control.acme.counts(&site, now);
        }
        let control = Arc::clone(control);
        tokio::spawn(async move {
            let _running = running;
            if let Err(error) = order::run(&control, &site, names).await {
                tracing::info!(%site, %error, "an order stays where it is, for the next leader");
            }
        });
    }
}

/// Orders of sites that want none any more.
fn leftovers(control: &Control) -> Vec<SiteName> {
    let (state, soft) = (control.raft.state.read(), control.acme.soft.lock());
    let wanted = |site: &SiteName| state.site(site.as_str()).is_some_and(|s| s.current().spec.is_automatic() && !s.orderable().is_empty());
    // It failed for other names than the site has now, and these have a certificate.
    let is_past = |o: &OrderRecord| {
        let names = state.site(o.site.as_str()).map(SiteRecord::orderable).unwrap_or_default();
        let certified = |n: &String| state.certificate(&acme_name(&o.site)).is_some_and(|c| c.hosts.contains(n));
        o.step == OrderStep::Failed && o.names != names && names.iter().all(certified)
    };
    let of_no_use = |o: &&OrderRecord| (!wanted(&o.site) || is_past(o)) && !soft.running.contains(&o.site);
    state.orders().filter(of_no_use).map(|o| o.site.clone()).collect()
}

/// A site's place among the orders that are under way here.
struct Running {
    control: Arc<Control>,
    site: SiteName,
}

impl Running {
    fn begin(control: &Arc<Control>, site: &SiteName) -> Option<Self> {
        let mut soft = control.acme.soft.lock();
        if soft.running.len() >= MOST_AT_ONCE || !soft.running.insert(site.clone()) {
            return None;
        }
        soft.wishes.remove(site);
        drop(soft);
        Some(Self { control: Arc::clone(control), site: site.clone() })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.control.acme.soft.lock().running.remove(&self.site);
    }
}

impl Acme {
    /// The certificate that a new one takes the place of, where the authority has said when that should be.
    fn replaced(&self, site: &SiteName, state: &State) -> Option<Vec<u8>> {
        let leaf = state.certificate(&acme_name(site))?.chain.first()?;
        let is_known = |r: &&Renewal| r.leaf == *leaf && r.at.is_some();
        self.soft.lock().renewals.get(site).filter(is_known).map(|r| r.leaf.clone())
    }

    /// Whether the authority has to say when to renew; it counts as asked then.
    fn is_to_be_asked(&self, site: &SiteName, state: &State, now: WallTime) -> bool {
        let Some(leaf) = state.certificate(&acme_name(site)).and_then(|c| c.chain.first()) else { return false };
        let mut soft = self.soft.lock();
        let known = soft.renewals.get(site).filter(|r| r.leaf == *leaf);
        if known.is_some_and(|r| now < r.ask_again) || soft.asking >= MOST_AT_ONCE {
            return false;
        }
        let (at, failures) = known.map_or((None, 0), |r| (r.at, r.failures));
        soft.asking += 1;
        soft.renewals.insert(site.clone(), Renewal { leaf: leaf.clone(), at, ask_again: now + ASK_AGAIN, failures });
        true
    }

    /// The authority did not say when to renew. Gives the wait until it is asked again.
    fn was_not_told(&self, site: &SiteName, leaf: &[u8], why: &Stop, now: WallTime) -> Duration {
        let mut soft = self.soft.lock();
        let Some(known) = soft.renewals.get_mut(site).filter(|r| r.leaf == leaf) else { return ASK_AGAIN };
        known.failures = known.failures.saturating_add(1);
        // What it says now it will say again soon (section 4.3.3).
        let first = if matches!(why, Stop::Failed { .. }) { ASK_AGAIN } else { ASK_AGAIN_SOON };
        let wait = due::next_try(known.failures, first, false, random_u64()).min(ASK_AGAIN);
        known.ask_again = now + wait;
        wait
    }
}

/// Asks when a certificate should be renewed (RFC 9773 section 4.2), and draws a moment in the window.
async fn ask_renewal(control: &Control, site: SiteName, certificate: SealedCertificate) {
    let Some(leaf) = certificate.chain.first().cloned() else { return };
    let der = CertificateDer::from(leaf.clone());
    let Ok(id) = CertificateIdentifier::try_from(&der) else { return };
    let told = match account(control).await {
        Ok(account) => match account.renewal_info(&id).await {
            Err(instant_acme::Error::Unsupported(_)) => return,
            // No window at all (section 4.2).
            Ok((info, _)) if info.suggested_window.end <= info.suggested_window.start => {
                Err(Stop::failed("the end of its window is not after the start"))
            }
            told => told.map_err(Stop::from),
        },
        Err(stop) => Err(stop),
    };
    let now = control.clock.wall();
    match told {
        Ok((info, ask_again)) => {
            let millis = |t: time::OffsetDateTime| u64::try_from(t.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
            let (start, end) = (millis(info.suggested_window.start), millis(info.suggested_window.end));
            let at = WallTime(start + random_u64() % end.saturating_sub(start).max(1));
            let ask_again = now + ask_again.clamp(Duration::from_secs(60), ASK_AGAIN * 4);
            let mut soft = control.acme.soft.lock();
            // One that was drawn before stays, while the window holds it.
            let before = soft.renewals.get(&site).filter(|r| r.leaf == leaf).and_then(|r| r.at);
            let at = before.filter(|b| (start..end).contains(&b.0)).unwrap_or(at);
            soft.renewals.insert(site, Renewal { leaf, at: Some(at), ask_again, failures: 0 });
        }
        Err(error) => {
            let wait = control.acme.was_not_told(&site, &leaf, &error, now);
            tracing::warn!(%site, %error, seconds = wait.as_secs(), "the authority does not say when to renew; it is asked again");
        }
    }
}

/// The account at the authority; made, and kept in the log, where there is none.
async fn account(control: &Control) -> Result<Arc<Account>, Stop> {
    let Some(settings) = &control.settings.acme else { return Err(Stop::failed("the settings name no authority")) };
    let mut known = control.acme.account.lock().await;
    if let Some(account) = known.as_ref() {
        return Ok(Arc::clone(account));
    }
    let name = SealedName::Account(settings.directory.clone());
    let kept = control.raft.state.read().account(&settings.directory).map(|a| a.sealed.clone());
    let kept = kept.map(|sealed| control.cluster_keys.open(&name, &sealed)).transpose().map_err(|e| Stop::failed(e.to_string()))?;
    let (account, new) = authority::account(settings, kept.as_ref().map(|k| k.as_slice())).await?;
    if let Some(new) = new {
        let sealed = control.seal(&name, &new).map_err(|e| Stop::failed(e.to_string()))?;
        let account = SealedAccount { authority: settings.directory.clone(), sealed };
        control.change(BY, Change::AccountPut { account }).await?;
    }
    let account = Arc::new(account);
    *known = Some(Arc::clone(&account));
    Ok(account)
}

/// The authority knows the account no more: the next order makes another.
async fn forget_account(control: &Control) -> Result<(), NotNow> {
    let Some(settings) = &control.settings.acme else { return Ok(()) };
    *control.acme.account.lock().await = None;
    match control.change(BY, Change::AccountRemove { authority: settings.directory.clone() }).await {
        Err(NotNow::Refused(_)) | Ok(_) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Why an order is not gone on with.
#[derive(Debug, thiserror::Error)]
enum Stop {
    /// By this node: it leads no more, most likely.
    #[error(transparent)]
    NotNow(#[from] NotNow),
    /// A nonce was not taken (RFC 8555 section 6.5): the same once more is all there is to do.
    #[error("the authority takes none of the nonces that it gave")]
    Nonce,
    /// The authority does not answer, or says that it cannot.
    #[error("{0}")]
    Away(String),
    /// It knows the account no more: another is made.
    #[error("{0}")]
    NoAccount(String),
    /// It came to nothing.
    #[error("{problem}")]
    Failed {
        problem: String,
        is_rate_limited: bool,
        /// The names that it failed for, where that is known.
        unproven: Vec<String>,
    },
}

impl Stop {
    fn failed(problem: impl Into<String>) -> Self {
        Self::Failed { problem: problem.into(), is_rate_limited: false, unproven: Vec::new() }
    }
}

impl From<instant_acme::Error> for Stop {
    fn from(e: instant_acme::Error) -> Self {
        if authority::is(&e, "badNonce") {
            return Self::Nonce;
        }
        if authority::is(&e, "accountDoesNotExist") {
            return Self::NoAccount(authority::words(&e));
        }
        if authority::is_away(&e) {
            return Self::Away(authority::words(&e));
        }
        let unproven = match &e {
            instant_acme::Error::Api(problem) => authority::named(problem),
            _ => Vec::new(),
        };
        Self::Failed { problem: authority::words(&e), is_rate_limited: authority::is_rate_limit(&e), unproven }
    }
}
