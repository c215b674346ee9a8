//! May this client have that answer at this time? An independent, simple reading of RFC 9110 and RFC 9111 over the records of the
//! origin and the clients. It shares no code with the product.

use crate::client::{Got, Reading, Wish};
use crate::heads::Shared;
use crate::origin::{self, Answer, Fault, Framing, Shape, Validator};
use crate::{Fields, range, value_of};
use std::collections::{BTreeSet, HashMap};
use std::io::Read;

/// Clocks of whole seconds: what one node decides by them may be off by so much.
const SECOND: f64 = 1.05;
/// Minimum transfer rate of a slow machine over HTTP/3 in a debug build, in bytes per second.
const SLOWEST: f64 = 2e6;
/// Delay without a cause that a busy machine may add, in seconds.
const NOTHING: f64 = 3.0;
/// `retries = 2`.
const ATTEMPTS: usize = 3;
/// Requests that may follow successful ones on each tier: a 304 that allows no storing, and a part that cannot be shared.
const FOLLOWING: usize = 2;
/// A tenth of how far back Last-Modified lies.
const HEURISTIC: u64 = 3_990;

/// The settings of a site that answers depend on.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub ignores_reloads: bool,
    pub stale_if_unreachable: f64,
    pub stale_wait: f64,
    pub first_byte_timeout: f64,
    pub total_timeout: f64,
}

/// One request of a client and its response.
#[derive(Clone, Debug)]
pub struct Asked {
    pub id: usize,
    pub settings: Settings,
    pub wish: Wish,
    pub started: f64,
    pub ended: f64,
    /// Without the body.
    pub got: Got,
    /// The fault in the body's bytes, if there is one.
    pub wrong_bytes: Option<String>,
}

#[derive(Clone, Debug)]
pub enum Selector {
    Url(String, String),
    Tag(String),
}

/// A purge that was answered with 200.
#[derive(Clone, Debug)]
pub struct Purge {
    pub network: String,
    pub selector: Selector,
    pub sent: f64,
    pub answered: f64,
}

pub struct World {
    pub answers: Vec<Answer>,
    pub asked: Vec<Asked>,
    pub purges: Vec<Purge>,
    /// When the last client went.
    pub over: f64,
}

impl Asked {
    /// The request without what belongs to its connection.
    pub fn effective(&self) -> Fields {
        let named = value_of(&self.wish.fields, "connection").unwrap_or_default().to_ascii_lowercase();
        let named = String::from_utf8_lossy(&named).into_owned();
        let is_named = |n: &str| named.split(',').any(|m| m.trim() == n);
        self.wish.fields.iter().filter(|(n, _)| n != "connection" && !is_named(n)).cloned().collect()
    }

    fn field(&self, name: &str) -> Option<String> {
        value_of(&self.effective(), name).map(|v| String::from_utf8_lossy(&v).into_owned())
    }

    /// A directive of the request's Cache-Control.
    fn directive(&self, name: &str) -> Option<Option<f64>> {
        directive(&self.effective(), name)
    }

    fn said(&self, name: &str) -> Option<String> {
        value_of(&self.got.fields, name).map(|v| String::from_utf8_lossy(&v).into_owned())
    }

    fn head_at(&self) -> Option<f64> {
        self.got.head_after.map(|d| self.started + d.as_secs_f64())
    }

    pub fn answer(&self) -> Option<usize> {
        self.said("x-answer")?.parse().ok()
    }
}

fn directive(fields: &Fields, name: &str) -> Option<Option<f64>> {
    let line = value_of(fields, "cache-control")?;
    String::from_utf8_lossy(&line).split(',').find_map(|d| {
        let (n, value) = d.trim().split_once('=').map_or((d.trim(), None), |(n, v)| (n, v.parse().ok()));
        (n == name).then_some(value)
    })
}

/// Two requests say the same of a field (RFC 9111 section 4.1).
fn same(name: &str, a: Option<&[u8]>, b: Option<&[u8]>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return a.is_none() && b.is_none() };
    let members = |v: &[u8]| v.split(|b| *b == b',').map(|m| m.trim_ascii().to_vec()).collect::<Vec<_>>();
    match name {
        "accept-language" => {
            let weighed = |v: &[u8]| {
                let all = members(v).into_iter().map(|m| {
                    let text = String::from_utf8_lossy(&m).to_ascii_lowercase();
                    let (language, q) =
                        text.split_once(";q=").map_or((text.clone(), 1.0), |(l, q)| (l.trim().to_owned(), q.parse().unwrap()));
                    (language, (q * 1000.0) as u64)
                });
                all.collect::<BTreeSet<_>>()
            };
            weighed(a) == weighed(b)
        }
        _ => a == b,
    }
}

fn decoded(coding: Option<&str>, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    // The part before a break counts.
    let _ = match coding {
        None => return Some(bytes.to_vec()),
        Some("gzip") => flate2::read::GzDecoder::new(bytes).read_to_end(&mut out),
        Some("br") => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut out),
        Some("zstd") => zstd::stream::read::Decoder::new(bytes).ok()?.read_to_end(&mut out),
        Some(_) => return None,
    };
    Some(out)
}

fn asked_range(wish: &Wish) -> Option<String> {
    value_of(&wish.fields, "range").map(|v| String::from_utf8_lossy(&v).into_owned())
}

/// The fault in the received bytes, if there is one.
pub fn wrong_bytes(answer: &Answer, wish: &Wish, got: &Got) -> Option<String> {
    let field = |name: &str| value_of(&got.fields, name).map(|v| String::from_utf8_lossy(&v).into_owned());
    let shape = Shape::of(&wish.path);
    if matches!(got.status, 412 | 416) {
        return None;
    }
    if wish.method == "HEAD" || got.status == 304 {
        return (!got.body.is_empty()).then(|| "a body where there is none".into());
    }
    let Some(id) = field("x-body").and_then(|b| b.parse::<u64>().ok()) else { return Some("no X-Body".into()) };
    let coding = field("content-encoding");
    let is_endless = answer.framing == Framing::Endless && answer.status != 304;
    let (got_bytes, from, length) = if got.status == 206 {
        let all = if coding.is_some() { origin::gzip(&origin::body(id, 0, shape.length)) } else { Vec::new() };
        let total = if coding.is_some() { all.len() } else { shape.length };
        let Some(Some((from, length))) = asked_range(wish).map(|r| range(&r, total).flatten()) else {
            return Some("206 for what has no such part".into());
        };
        if field("content-range") != Some(format!("bytes {from}-{}/{total}", from + length - 1)) {
            return Some(format!("Content-Range {:?} for {from}+{length} of {total}", field("content-range")));
        }
        if coding.is_some() {
            let part = &all[from..from + length];
            let fits = part.starts_with(&got.body) && (!got.whole || part.len() == got.body.len());
            return (!fits).then(|| "another part of what is coded".into());
        }
        (got.body.clone(), from, length)
    } else {
        let Some(plain) = decoded(coding.as_deref(), &got.body) else { return Some(format!("coded with {coding:?}")) };
        (plain, 0, shape.length)
    };
    if is_endless && got.whole && got.status != 206 {
        return Some("an endless body has ended".into());
    }
    if !is_endless && got_bytes.len() > length {
        return Some(format!("{} bytes of {length}", got_bytes.len()));
    }
    if got.whole && got_bytes.len() != length && (answer.framing != Framing::Close || answer.status == 304) && !is_endless {
        return Some(format!("{} bytes of {length}, as if they were all", got_bytes.len()));
    }
    let right = origin::body(id, from, got_bytes.len());
    if got_bytes == right {
        return None;
    }
    let at = got_bytes.iter().zip(&right).position(|(a, b)| a != b)?;
    let shown = String::from_utf8_lossy(&got_bytes[at / 16 * 16..(at / 16 * 16 + 48).min(got_bytes.len())]).into_owned();
    Some(format!("byte {at} of body {id:x} is wrong: {shown:?}"))
}

pub struct Judge<'a> {
    world: &'a World,
    /// The answers for each host and path.
    of_path: HashMap<(&'a str, &'a str), Vec<&'a Answer>>,
    caused: HashMap<usize, Vec<&'a Answer>>,
    by_id: HashMap<usize, &'a Asked>,
    posts: HashMap<(&'a str, &'a str), Vec<&'a Asked>>,
    asked_of_path: HashMap<(&'a str, &'a str), Vec<&'a Asked>>,
    pub longest_wait: f64,
    pub stale: usize,
    pub reused: usize,
}

impl<'a> Judge<'a> {
    pub fn new(world: &'a World) -> Self {
        let mut judge = Self {
            world,
            of_path: HashMap::new(),
            caused: HashMap::new(),
            by_id: world.asked.iter().map(|a| (a.id, a)).collect(),
            posts: HashMap::new(),
            asked_of_path: HashMap::new(),
            longest_wait: 0.0,
            stale: 0,
            reused: 0,
        };
        for answer in &world.answers {
            judge.of_path.entry((&answer.host, &answer.path)).or_default().push(answer);
            if let Some(id) = answer.caused_by {
                judge.caused.entry(id).or_default().push(answer);
            }
        }
        for asked in &world.asked {
            let key = (&*asked.wish.host, &*asked.wish.path);
            judge.asked_of_path.entry(key).or_default().push(asked);
            if asked.wish.method == "POST" && (200..400).contains(&asked.got.status) {
                judge.posts.entry(key).or_default().push(asked);
            }
        }
        judge
    }

    fn answers(&self, asked: &'a Asked) -> &[&'a Answer] {
        self.of_path.get(&(&*asked.wish.host, &*asked.wish.path)).map_or(&[], Vec::as_slice)
    }

    /// All that is wrong with one request.
    pub fn judge(&mut self, asked: &'a Asked) -> Vec<String> {
        let mut wrong: Vec<String> = asked.wrong_bytes.iter().cloned().collect();
        self.attempts(asked, &mut wrong);
        self.waits(asked, &mut wrong);
        if asked.got.left && asked.got.head_after.is_none() && asked.wish.waits() {
            wrong.push("no answer came".into());
        }
        if asked.got.head_after.is_some() {
            match asked.answer().map(|serial| &self.world.answers[serial]) {
                Some(answer) => self.answered(asked, answer, &mut wrong),
                None => self.generated(asked, &mut wrong),
            }
        }
        if let Some(error) = &asked.got.error
            && !self.has_failed(asked, true)
        {
            wrong.push(format!("it ended with \"{error}\", and the origin did nothing wrong"));
        }
        wrong
    }

    /// Checks the number of requests upstream for one client request.
    fn attempts(&self, asked: &'a Asked, wrong: &mut Vec<String>) {
        // A successful one may be followed by another fetch: after a 304 that allows no storing, or a part that cannot be shared.
        let mut failed: HashMap<Option<Vec<u8>>, usize> = HashMap::new();
        let all = self.caused.get(&asked.id).map_or(&[][..], Vec::as_slice);
        // A node may leave an answer that hangs before it can see the fault: a purge came, or the part cannot be shared.
        let unseen = |a: &Answer| {
            let hangs = matches!(a.fault, Fault::Hangs | Fault::HangsInBody(_));
            let left = hangs && a.was_left && a.ended.is_some_and(|end| end - a.arrived < asked.settings.first_byte_timeout - 0.3);
            // The head of a part shows that it cannot be shared, and each client then asks for its own.
            left || (a.status == 206 && a.head_sent.is_some() && matches!(a.fault, Fault::Cut(_)))
        };
        for answer in all.iter().filter(|a| a.fault != Fault::None && !unseen(a)) {
            *failed.entry(value_of(&answer.asked, "range")).or_default() += 1;
        }
        let most = if asked.wish.method == "POST" { 1 } else { ATTEMPTS };
        for (range, count) in failed {
            if count > most {
                wrong.push(format!(
                    "{count} requests that failed came upstream for it (range {:?})",
                    range.map(|r| r.escape_ascii().to_string())
                ));
            }
        }
        let is_large = Shape::of(&asked.wish.path).length > 1 << 20;
        let tiers = if asked.wish.path.starts_with("/two/") { 2 } else { 1 };
        if asked.wish.method == "POST" && all.len() > 1 || all.len() > ATTEMPTS + FOLLOWING * tiers && !is_large {
            wrong.push(format!("{} requests came upstream for it", all.len()));
        }
    }

    /// Time that is not the origin's, and not the client's own.
    fn waits(&mut self, asked: &'a Asked, wrong: &mut Vec<String>) {
        let from = asked.started + asked.wish.upload_takes as f64 / 1000.0;
        let head = asked.head_at().unwrap_or(asked.ended);
        let held = |a: &&&Answer| (a.arrived, a.head_sent.or(a.ended).unwrap_or(self.world.over));
        let waited = uncovered(from, head, self.answers(asked).iter().map(|a| held(&a)));
        let sent = |a: &&Answer| (a.arrived, a.ended.unwrap_or(self.world.over));
        let reads = matches!(asked.wish.reading, Reading::All) && asked.got.head_after.is_some();
        let read = if reads { uncovered(head, asked.ended, self.answers(asked).iter().map(sent)) } else { 0.0 };
        self.longest_wait = self.longest_wait.max(waited).max(read);
        if waited > NOTHING {
            wrong.push(format!("it waited {waited:.2} s for its head, and nobody caused it"));
        }
        if read > NOTHING + Shape::of(&asked.wish.path).length as f64 / SLOWEST {
            wrong.push(format!("it waited {read:.2} s for its body, and nobody caused it"));
        }
        let deadline = asked.settings.total_timeout + asked.wish.upload_takes as f64 / 1000.0 + NOTHING;
        if head - asked.started > deadline {
            wrong.push(format!("it waited {:.2} s for its head, past its deadline", head - asked.started));
        }
    }

    /// Something went wrong at the origin, for this path, while the request was under way.
    fn has_failed(&self, asked: &'a Asked, with_bodies: bool) -> bool {
        let end = if with_bodies { asked.ended } else { asked.head_at().unwrap_or(asked.ended) };
        // A body of several fetches breaks off where the page changes between them.
        let shape = Shape::of(&asked.wish.path);
        let is_in_parts = with_bodies && matches!(shape.validator, Validator::Strong | Validator::Date) && shape.length > 1 << 20;
        let body = asked.answer().filter(|_| is_in_parts).map(|serial| self.world.answers[serial].body);
        self.answers(asked).iter().any(|a| {
            // The machine may have held the origin up.
            let slow = a.head_sent.unwrap_or(self.world.over) - a.arrived > asked.settings.first_byte_timeout - 0.3;
            let failed = a.fault != Fault::None || slow || body.is_some_and(|b| b != a.body);
            failed && a.arrived <= end && a.ended.unwrap_or(self.world.over) >= asked.started - 0.1
        })
    }

    /// Whether a stale response was allowed: an answer was an error, or took too long.
    fn needs_help(&self, asked: &'a Asked, errors: bool) -> bool {
        let end = asked.head_at().unwrap_or(asked.ended);
        self.answers(asked).iter().any(|a| {
            let slow = a.head_sent.unwrap_or(self.world.over) - a.arrived > asked.settings.stale_wait - 0.3;
            // The head of a body that breaks off may never reach an edge: its shield resets the stream.
            let broken = matches!(a.fault, Fault::Cut(_) | Fault::HangsInBody(_)) && !asked.wish.path.starts_with("/two");
            let failed = (a.fault != Fault::None && !broken) || slow || (errors && matches!(a.status, 500 | 503));
            failed && a.arrived <= end && a.ended.unwrap_or(self.world.over) >= asked.started - 0.1
        })
    }

    /// Checks a response that a node generated itself.
    fn generated(&self, asked: &'a Asked, wrong: &mut Vec<String>) {
        let may_be = match asked.got.status {
            504 if asked.directive("only-if-cached").is_some() => true,
            502..=504 => self.has_failed(asked, false),
            416 => asked.field("range").is_some(),
            412 => asked.field("if-match").is_some(),
            _ => false,
        };
        if !may_be {
            wrong.push(format!("a {} that the origin did not cause", asked.got.status));
        }
    }

    fn answered(&mut self, asked: &'a Asked, answer: &'a Answer, wrong: &mut Vec<String>) {
        let mut say = |what: String| wrong.push(format!("answer {}: {what}", answer.serial));
        if (&*answer.host, &*answer.path) != (&*asked.wish.host, &*asked.wish.path) {
            say(format!("it is of {}{}", answer.host, answer.path));
        }
        if asked.said("x-echo") != Some(format!("e{}", answer.serial)) {
            say(format!("its head is mixed: {:?}", asked.said("x-echo")));
        }
        if asked.said("x-hop").is_some() {
            say("X-Hop belonged to another connection".into());
        }
        if matches!(answer.fault, Fault::TwoFramings(_)) && answer.method != "HEAD" {
            say("it could be framed in two ways".into());
        }
        if let Some(coding) = asked.said("content-encoding")
            && !asked.field("accept-encoding").is_some_and(|a| a.contains(&coding))
        {
            say(format!("it is coded with {coding}, which the client does not take"));
        }
        self.status(asked, answer, &mut say);
        let is_own = answer.caused_by == Some(asked.id);
        if is_own {
            own(asked, answer, &mut say);
        } else {
            self.reused += 1;
            self.shared(asked, answer, &mut say);
        }
        self.purged(asked, answer, &mut say);
    }

    /// Checks that the status fits the origin's and the client's request.
    fn status(&self, asked: &'a Asked, answer: &Answer, say: &mut impl FnMut(String)) {
        let tag = asked.said("etag");
        let opaque = |t: &str| t.trim().trim_start_matches("W/").to_owned();
        let listed = |list: String| list == "*" || list.split(',').any(|t| tag.as_deref().is_some_and(|tag| opaque(t) == opaque(tag)));
        let right = match asked.got.status {
            304 => {
                let by_tag = asked.field("if-none-match").map(listed);
                let date = |v: Option<String>| v.and_then(|v| httpdate::parse_http_date(&v).ok());
                let (since, modified) = (date(asked.field("if-modified-since")), date(asked.said("last-modified")));
                by_tag.unwrap_or_else(|| since.is_some() && modified.is_some() && modified <= since)
            }
            206 => {
                let same = asked.field("if-range").is_none_or(|v| Some(v.clone()) == tag && !v.starts_with("W/"));
                asked.field("range").is_some() && same && asked.wish.method == "GET"
            }
            416 => asked.field("range").is_some(),
            412 => asked.field("if-match").is_some(),
            // A 304 for a node's own validation leaves the stored status.
            200 if answer.status == 206 => true,
            other if answer.status == 304 => self.answers(asked).iter().any(|a| a.status == other || (a.status, other) == (206, 200)),
            other => other == answer.status,
        };
        if !right {
            say(format!("{} where the origin said {}", asked.got.status, answer.status));
        }
    }

    /// It was made for another request: RFC 9111 sections 3 and 4.
    fn shared(&mut self, asked: &'a Asked, answer: &Answer, say: &mut impl FnMut(String)) {
        let effective = asked.effective();
        if !matches!(asked.wish.method, "GET" | "HEAD") || answer.method != "GET" {
            say(format!("a {} was answered with another's {}", asked.wish.method, answer.method));
        }
        match answer.says.shared {
            Shared::Never => say("it may not be stored".into()),
            Shared::Validated => say("it may not be used without validation".into()),
            Shared::For(_) | Shared::Unsaid => {}
        }
        if matches!(answer.status, 412 | 415 | 416 | 429) {
            say(format!("{} speaks of another request", answer.status));
        }
        if directive(&answer.asked, "no-store").is_some() {
            say("who asked for it said no-store".into());
        }
        if value_of(&answer.asked, "authorization").is_some() && !answer.says.authorized {
            say("it was asked for with Authorization".into());
        }
        match &answer.vary {
            None => say("its Vary lets nobody else have it".into()),
            Some(names) => {
                for name in names.iter().filter(|n| **n != "accept-encoding") {
                    let (a, b) = (value_of(&answer.asked, name), value_of(&effective, name));
                    if !same(name, a.as_deref(), b.as_deref()) {
                        say(format!("it is for another {name}: {:?}", a.map(|a| String::from_utf8_lossy(&a).into_owned())));
                    }
                }
            }
        }
        if answer.says.keeps_secret && asked.said("x-secret").is_some() {
            say("X-Secret is for the first client alone".into());
        }
        if asked.said("set-cookie").is_some() {
            say("Set-Cookie is for the first client alone".into());
        }
        let Some(head_sent) = answer.head_sent else { return say("it came before the origin sent it".into()) };
        let lifetime = lifetime(answer);
        let second = if asked.wish.path.starts_with("/two") { 2.0 * SECOND } else { SECOND };
        // At least.
        let age = answer.age as f64 + (asked.started - head_sent).max(0.0);
        let stale_for = age - lifetime as f64;
        if lifetime == 0 || stale_for > second {
            self.stale += 1;
            let most = answer.says.while_revalidating as f64 + second;
            let wanted = asked.directive("max-stale").is_some_and(|most| most.is_none_or(|most| stale_for <= most + second));
            let on_error = stale_for <= answer.says.if_error as f64 + second && self.needs_help(asked, true);
            let on_silence = stale_for <= asked.settings.stale_if_unreachable && self.needs_help(asked, false);
            let helps = lifetime > 0 && (stale_for <= most || on_error || on_silence);
            let may_be = !answer.says.strict && (helps || (wanted && !is_unsaid_and_somebodys(answer)));
            if !may_be {
                say(format!("it is stale: {age:.2} s old, for {lifetime} s"));
            }
        } else if !asked.settings.ignores_reloads && !self.needs_help(asked, true) {
            if asked.directive("max-age").flatten().is_some_and(|most| age > most + second) {
                say(format!("{age:.2} s is older than the client takes"));
            }
            let left = (lifetime as f64 - age).max(0.0);
            if asked.directive("min-fresh").flatten().is_some_and(|least| left < least - second) {
                say(format!("it is fresh for {left:.2} s, less than the client takes"));
            }
        }
        if asked.directive("no-cache").is_some()
            && !asked.settings.ignores_reloads
            && answer.arrived < asked.started - 0.01
            && !self.needs_help(asked, true)
        {
            say("the client wanted it to be validated".into());
        }
        // Age (section 5.1).
        // As old as the request that brought it, with all that was tried for it, may be (section 4.2.3).
        let began = answer.caused_by.and_then(|id| self.by_id.get(&id)).map_or(answer.arrived, |a| a.started.min(answer.arrived));
        let head = asked.head_at().unwrap_or(asked.ended);
        let upper = answer.age as f64 + (head - began) + (head - asked.started) + 2.0;
        match asked.said("age").map(|v| v.parse::<f64>()) {
            None if age > 2.0 + SECOND => say(format!("it has no Age, at {age:.2} s")),
            Some(Ok(said)) if said < (age - 2.0 * SECOND).floor() || said > upper => {
                say(format!("its Age is {said}, and it is {age:.2} to {upper:.2} s old"));
            }
            Some(Err(_)) => say("its Age is no number".into()),
            _ => {}
        }
    }

    /// Checks that the answer is not older than a purge or an unsafe request that named it.
    fn purged(&self, asked: &'a Asked, answer: &Answer, say: &mut impl FnMut(String)) {
        let network = asked.wish.path.split('/').nth(1).unwrap_or_default();
        for purge in self.world.purges.iter().filter(|p| p.network == network && p.answered <= asked.started && answer.arrived < p.sent) {
            let named = match &purge.selector {
                Selector::Url(host, path) => (host, path) == (&answer.host, &answer.path),
                Selector::Tag(tag) => answer.host == "s0.test" && answer.tags.contains(tag),
            };
            if named {
                say(format!("it was purged ({:?}) at {:.2}", purge.selector, purge.answered));
                break;
            }
        }
        for post in self.posts.get(&(&*asked.wish.host, &*asked.wish.path)).map_or(&[][..], Vec::as_slice) {
            let Some(to) = post.answer().map(|serial| &self.world.answers[serial]) else { continue };
            if post.head_at().is_some_and(|at| at <= asked.started) && answer.arrived < to.arrived {
                say(format!("a POST (answer {}) made it invalid", to.serial));
                break;
            }
        }
    }

    /// Finds streams that have no readers and still go on.
    pub fn endless(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for answer in self.world.answers.iter().filter(|a| a.framing == Framing::Endless && a.status == 200 && a.head_sent.is_some()) {
            let of_path = self.asked_of_path.get(&(&*answer.host, &*answer.path)).map_or(&[][..], Vec::as_slice);
            let ended = answer.ended.unwrap_or(self.world.over);
            let by = of_path.iter().find(|a| Some(a.id) == answer.caused_by);
            let readers = || of_path.iter().filter(|a| a.answer() == Some(answer.serial));
            let last = readers().chain(by).map(|a| a.ended).fold(answer.arrived, f64::max);
            // A fetch behind a stale answer has a time limit of its own while it has no readers.
            let is_behind = readers().next().is_none() && by.is_some_and(|a| a.answer().is_some());
            let behind = by.filter(|_| is_behind).map_or(0.0, |a| a.settings.total_timeout);
            if ended - last > NOTHING + behind {
                let what = format!("answer {} to {} went on for {:.2} s without readers", answer.serial, answer.path, ended - last);
                wrong.push(format!("{what}\n{}", by.map(|a| self.told(a)).unwrap_or_default()));
            }
        }
        wrong
    }

    /// All records of one request, as text for debugging a violation.
    pub fn told(&self, asked: &'a Asked) -> String {
        let show = |fields: &Fields| {
            let all = fields.iter().map(|(n, v)| format!("      {n}: {}\n", v.escape_ascii()));
            all.collect::<String>()
        };
        let mut out = format!(
            "  request {} at {:.3} to {:.3}: {:?} {} {}{} {:?}, upload of {:?} in {} ms\n{}  got {} (whole: {}, left: {}, error: {:?})\n{}",
            asked.id,
            asked.started,
            asked.ended,
            asked.wish.protocol,
            asked.wish.method,
            asked.wish.host,
            asked.wish.path,
            asked.wish.reading,
            asked.wish.upload.as_ref().map(Vec::len),
            asked.wish.upload_takes,
            show(&asked.wish.fields),
            asked.got.status,
            asked.got.whole,
            asked.got.left,
            asked.got.error,
            show(&asked.got.fields),
        );
        out += &format!("  shape {:?}\n", Shape::of(&asked.wish.path));
        for a in self.answers(asked).iter().filter(|a| a.arrived <= asked.ended && a.arrived > asked.started - 70.0) {
            out += &format!(
                "  answer {} for {:?} at {:.3}, head {:.3}, end {:.3}{}: {} {} {:?} {:?}, {:?}, expires {:?}, age {}, vary {:?}, tags {:?}\n{}",
                a.serial,
                a.caused_by,
                a.arrived,
                a.head_sent.unwrap_or(-1.0),
                a.ended.unwrap_or(-1.0),
                if a.was_left { " (left)" } else { "" },
                a.method,
                a.status,
                a.framing,
                a.fault,
                a.says.lines.iter().map(|l| l.escape_ascii().to_string()).collect::<Vec<_>>(),
                a.expires,
                a.age,
                a.vary,
                a.tags,
                if a.caused_by == Some(asked.id) || asked.answer() == Some(a.serial) { show(&a.asked) } else { String::new() },
            );
        }
        for purge in self
            .world
            .purges
            .iter()
            .filter(|p| asked.wish.path.contains(&p.network) && p.answered >= asked.started && p.sent <= asked.ended)
        {
            out += &format!("  purge of {:?} in {} at {:.3} to {:.3}\n", purge.selector, purge.network, purge.sent, purge.answered);
        }
        out
    }
}

/// Checks a response to this very request, which has to have reached the origin unchanged.
fn own(asked: &Asked, answer: &Answer, say: &mut impl FnMut(String)) {
    let effective = asked.effective();
    if answer.method != asked.wish.method && !(asked.wish.method == "HEAD" && answer.method == "GET") {
        say(format!("its {} became a {}", asked.wish.method, answer.method));
    }
    for name in ["x-v", "cookie", "authorization", "origin", "accept-language"] {
        let (a, b) = (value_of(&answer.asked, name), value_of(&effective, name));
        if !same(name, a.as_deref(), b.as_deref()) {
            say(format!("the origin got another {name}: {:?}", a.map(|a| String::from_utf8_lossy(&a).into_owned())));
        }
    }
    // A request whose response only one client can have keeps the client's fields.
    let is_its_own = value_of(&effective, "authorization").is_some() || directive(&effective, "no-store").is_some();
    if is_its_own && asked.wish.method != "HEAD" {
        for name in
            ["range", "if-range", "if-none-match", "if-modified-since", "if-match", "accept-encoding", "content-type", "cache-control"]
        {
            let (a, b) = (value_of(&answer.asked, name), value_of(&effective, name));
            if a != b && asked.wish.method == "GET" {
                say(format!("the origin got another {name}: {:?}", a.map(|a| String::from_utf8_lossy(&a).into_owned())));
            }
        }
    }
    if let (Some(upload), Some((length, hash))) = (&asked.wish.upload, answer.upload)
        && (upload.len(), origin::hash(upload)) != (length, hash)
    {
        say(format!("the origin got {length} bytes of an upload of {}", upload.len()));
    }
}

/// How long others may have it without asking, in seconds (RFC 9111 section 4.2.1).
fn lifetime(answer: &Answer) -> u64 {
    match answer.says.shared {
        Shared::For(seconds) => seconds,
        Shared::Never | Shared::Validated => 0,
        Shared::Unsaid => match answer.expires {
            Some(seconds) => seconds,
            None => {
                let known = matches!(answer.status, 200 | 203 | 204 | 206 | 301 | 304 | 404) || answer.says.authorized;
                if known && answer.has_date && !is_unsaid_and_somebodys(answer) { HEURISTIC + 20 } else { 0 }
            }
        },
    }
}

/// It came for a request with Cookie or Authorization, and does not say that others may have it.
fn is_unsaid_and_somebodys(answer: &Answer) -> bool {
    let is_somebodys = ["cookie", "authorization"].iter().any(|n| value_of(&answer.asked, n).is_some());
    is_somebodys && answer.says.shared == Shared::Unsaid && answer.expires.is_none()
}

/// How much of a time no interval covers.
fn uncovered(from: f64, to: f64, intervals: impl Iterator<Item = (f64, f64)>) -> f64 {
    let mut all: Vec<(f64, f64)> = intervals.filter(|(a, b)| *b > from && *a < to).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut at, mut out) = (from, 0.0);
    for (begin, end) in all {
        out += (begin - at).max(0.0);
        at = at.max(end);
    }
    out + (to - at).max(0.0)
}
