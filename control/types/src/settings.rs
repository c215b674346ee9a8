//! From a TOML file to typed settings: every mistake of the file is found in one reading, each with its line and
//! with what would be right; keys that nobody asked for are refused.
//!
//! A reader asks a [`Section`] for each key it knows. What was asked for is known; at the section's end the rest is
//! reported, with the nearest known key as a suggestion.

use std::borrow::Borrow;
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Files longer than this are refused unread, in bytes.
pub const MAX_FILE_BYTES: usize = 1 << 20;
const MOST_MISTAKES: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub line: usize,
    pub key: String,
    pub problem: String,
}

/// All that is wrong with one file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes {
    pub file: String,
    pub list: Vec<Mistake>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, m) in self.list.iter().enumerate() {
            let (separator, colon) = (if n > 0 { "\n" } else { "" }, if m.key.is_empty() { "" } else { ": " });
            write!(f, "{separator}{}:{}: {}{colon}{}", self.file, m.line, m.key, m.problem)?;
        }
        Ok(())
    }
}

struct Context<'a> {
    text: &'a str,
    list: RefCell<Vec<Mistake>>,
}

impl Context<'_> {
    fn report(&self, at: usize, key: String, problem: String) {
        let line = 1 + self.text.bytes().take(at).filter(|b| *b == b'\n').count();
        self.list.borrow_mut().push(Mistake { line, key, problem });
    }
}

/// One table of the file.
pub struct Section<'a> {
    context: Rc<Context<'a>>,
    path: String,
    at: usize,
    table: Option<&'a DeTable<'a>>,
    known: RefCell<Vec<&'static str>>,
}

/// Reads `text`, named `file` in messages. `build` gets the file's root; its `None` must come with a report.
///
/// # Errors
/// All mistakes, in the order of their lines.
pub fn read<T>(file: &str, text: &str, build: impl FnOnce(&Section<'_>) -> Option<T>) -> Result<T, Mistakes> {
    let fail = |mut list: Vec<Mistake>| {
        list.sort_by_key(|m| m.line);
        list.truncate(MOST_MISTAKES);
        Err(Mistakes { file: file.into(), list })
    };
    if text.len() > MAX_FILE_BYTES {
        return fail(vec![Mistake { line: 1, key: String::new(), problem: format!("the file is longer than {MAX_FILE_BYTES} bytes") }]);
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    let context = Rc::new(Context { text, list: RefCell::default() });
    for e in errors {
        context.report(e.span().map_or(0, |s| s.start), String::new(), format!("not TOML: {}", e.message()));
    }
    if !context.list.borrow().is_empty() {
        return fail(context.list.take());
    }
    let section =
        Section { context: Rc::clone(&context), path: String::new(), at: 0, table: Some(root.get_ref()), known: RefCell::default() };
    let built = build(&section);
    drop(section);
    match (built, context.list.take()) {
        (Some(value), list) if list.is_empty() => Ok(value),
        (_, list) => fail(list),
    }
}

impl<'a> Section<'a> {
    fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }

    fn find(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.borrow_mut().push(key);
        self.table?.iter().find(|(k, _)| Borrow::<str>::borrow(k.get_ref()) == key).map(|(_, v)| v)
    }

    /// Whether the file has `key`.
    #[must_use]
    pub fn has(&self, key: &'static str) -> bool {
        self.find(key).is_some()
    }

    /// Reports a mistake of `key`'s value that only its meaning shows.
    pub fn wrong(&self, key: &'static str, problem: impl Into<String>) {
        let at = self.find(key).map_or(self.at, |v| v.span().start);
        self.context.report(at, self.key(key), problem.into());
    }

    pub fn optional<T>(&self, key: &'static str, parse: impl Fn(&DeValue<'_>) -> Result<T, String>) -> Option<T> {
        let value = self.find(key)?;
        parse(value.get_ref()).map_err(|problem| self.context.report(value.span().start, self.key(key), problem)).ok()
    }

    pub fn or<T>(&self, key: &'static str, default: T, parse: impl Fn(&DeValue<'_>) -> Result<T, String>) -> T {
        self.optional(key, parse).unwrap_or(default)
    }

    pub fn required<T>(&self, key: &'static str, like: &str, parse: impl Fn(&DeValue<'_>) -> Result<T, String>) -> Option<T> {
        if self.find(key).is_none() {
            self.context.report(self.at, self.key(key), format!("is missing; for example: {key} = {like}"));
            return None;
        }
        self.optional(key, parse)
    }

    /// A list; each wrong element is reported at its own line.
    pub fn list<T>(&self, key: &'static str, parse: impl Fn(&DeValue<'_>) -> Result<T, String>) -> Vec<T> {
        let Some(value) = self.find(key) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            self.context.report(
                value.span().start,
                self.key(key),
                format!("is of type {}, it should be a list: [...]", value.get_ref().type_str()),
            );
            return Vec::new();
        };
        let parsed = array.iter().enumerate().filter_map(|(n, v)| {
            parse(v.get_ref()).map_err(|p| self.context.report(v.span().start, format!("{}[{n}]", self.key(key)), p)).ok()
        });
        parsed.collect()
    }

    fn section(&self, path: String, at: usize, table: Option<&'a DeTable<'a>>) -> Section<'a> {
        Section { context: Rc::clone(&self.context), path, at, table, known: RefCell::default() }
    }

    /// A sub-table; an empty one where the file has none.
    #[must_use]
    pub fn table(&self, key: &'static str) -> Section<'a> {
        let value = self.find(key);
        let table = value.and_then(|v| v.get_ref().as_table());
        if let (Some(v), None) = (value, table) {
            self.context.report(
                v.span().start,
                self.key(key),
                format!("is of type {}, it should be a table: {{ ... }}", v.get_ref().type_str()),
            );
        }
        self.section(self.key(key), value.map_or(self.at, |v| v.span().start), table)
    }

    /// A list of tables.
    #[must_use]
    pub fn tables(&self, key: &'static str) -> Vec<Section<'a>> {
        let Some(value) = self.find(key) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            self.context.report(value.span().start, self.key(key), "should be a list of tables: [{ ... }, ...]".into());
            return Vec::new();
        };
        let sections = array.iter().enumerate().map(|(n, v)| {
            let path = format!("{}[{n}]", self.key(key));
            let table = v.get_ref().as_table();
            if table.is_none() {
                self.context.report(v.span().start, path.clone(), "should be a table: { ... }".into());
            }
            self.section(path, v.span().start, table)
        });
        sections.collect()
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        let known = self.known.take();
        for (key, _) in self.table.into_iter().flatten() {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let near = known.iter().map(|k| (distance(k, name), k)).min().filter(|(d, k)| *d <= 1 + k.len() / 4);
            let help = match near {
                Some((_, k)) => format!("; did you mean {k}?"),
                None => {
                    let mut all: Vec<&str> = known.clone();
                    all.sort_unstable();
                    all.dedup();
                    format!("; there are: {}", all.join(", "))
                }
            };
            self.context.report(key.span().start, self.key(name), format!("no such key{help}"));
        }
    }
}

/// Levenshtein distance, over bytes: keys are short ASCII words.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let next = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}

// The kinds of values, each a function for `optional`, `or`, `required` and `list`.

/// # Errors
/// It is no string.
pub fn string(v: &DeValue<'_>) -> Result<String, String> {
    v.as_str().map(str::to_owned).ok_or_else(|| format!("is of type {}, it should be a string in quotes", v.type_str()))
}

/// # Errors
/// It is no boolean.
pub fn boolean(v: &DeValue<'_>) -> Result<bool, String> {
    v.as_bool().ok_or_else(|| format!("is of type {}, it should be true or false", v.type_str()))
}

/// A string that `T` reads.
pub fn parsed<T: std::str::FromStr>(v: &DeValue<'_>) -> Result<T, String>
where
    T::Err: fmt::Display,
{
    string(v)?.parse().map_err(|e: T::Err| e.to_string())
}

/// One of a few words.
pub fn one_of<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&DeValue<'_>) -> Result<T, String> {
    move |v| {
        let text = string(v)?;
        words.iter().find(|(w, _)| *w == text).map(|(_, t)| *t).ok_or_else(|| {
            let all: Vec<String> = words.iter().map(|(w, _)| format!("{w:?}")).collect();
            format!("{text:?} is not one of {}", all.join(", "))
        })
    }
}

/// A whole number from `least` to `most`.
pub fn number(least: u64, most: u64) -> impl Fn(&DeValue<'_>) -> Result<u64, String> {
    move |v| {
        let n = v.as_integer().and_then(|i| u64::from_str_radix(&i.as_str().replace('_', ""), i.radix()).ok());
        n.filter(|n| (least..=most).contains(n)).ok_or_else(|| format!("should be a whole number from {least} to {most}"))
    }
}

/// A duration such as "1500ms", "30s", "5m", "2h" or "7d", from `least` to `most`.
pub fn duration(least: Duration, most: Duration) -> impl Fn(&DeValue<'_>) -> Result<Duration, String> {
    move |v| {
        let text = string(v).map_err(|e| format!("{e}: a duration such as \"30s\""))?;
        let d = parse_duration(&text)?;
        if (least..=most).contains(&d) {
            Ok(d)
        } else {
            Err(format!("{text:?} should be from {} to {}", show_duration(least), show_duration(most)))
        }
    }
}

/// A size such as "512KiB", "1GiB" or "50GB", in bytes, from `least` to `most`.
pub fn size(least: u64, most: u64) -> impl Fn(&DeValue<'_>) -> Result<u64, String> {
    move |v| {
        let text = string(v).map_err(|e| format!("{e}: a size such as \"1GiB\""))?;
        let n = parse_size(&text)?;
        if (least..=most).contains(&n) {
            Ok(n)
        } else {
            Err(format!("{text:?} should be from {} to {}", show_size(least), show_size(most)))
        }
    }
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    Some((digits.parse().ok()?, unit.trim_start()))
}

/// # Errors
/// What a duration looks like.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write it like \"500ms\", \"30s\", \"5m\", \"2h\" or \"7d\"");
    let (n, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let ms: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    n.checked_mul(ms).map(Duration::from_millis).ok_or_else(wrong)
}

/// # Errors
/// What a size looks like.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size; write it like \"512KiB\", \"64MiB\" or \"10GiB\"");
    let (n, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let scale: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    n.checked_mul(scale).ok_or_else(wrong)
}

#[must_use]
pub fn show_duration(d: Duration) -> String {
    let ms = d.as_millis();
    match ms {
        0 => "0s".into(),
        _ if ms.is_multiple_of(86_400_000) => format!("{}d", ms / 86_400_000),
        _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        _ => format!("{ms}ms"),
    }
}

#[must_use]
pub fn show_size(bytes: u64) -> String {
    for (unit, scale) in [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= scale && bytes.is_multiple_of(scale) {
            return format!("{}{unit}", bytes / scale);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_reported_at_once_with_lines_and_suggestions() {
        let text = "nmae = \"x\"\n[limits]\nidle = \"5 parsecs\"\ncount = -1\nwat = 1\nlist = [1,\n\"a\"]\n";
        let error = read("edge.toml", text, |s| {
            let name = s.required("name", "\"fra-1\"", string);
            let limits = s.table("limits");
            limits.or("idle", Duration::ZERO, duration(Duration::ZERO, Duration::MAX));
            limits.or("count", 0, number(0, 9));
            limits.list("list", string);
            name
        })
        .unwrap_err();
        let shown = error.to_string();
        let want = [
            "edge.toml:1: nmae: no such key; did you mean name?",
            "edge.toml:1: name: is missing; for example: name = \"fra-1\"",
            "edge.toml:3: limits.idle: \"5 parsecs\" is not a duration",
            "edge.toml:4: limits.count: should be a whole number from 0 to 9",
            "edge.toml:5: limits.wat: no such key; there are: count, idle, list",
            "edge.toml:6: limits.list[0]: is of type integer, it should be a string in quotes",
        ];
        for w in want {
            assert!(shown.contains(w), "{w}\nnot in\n{shown}");
        }
        assert_eq!(error.list.len(), want.len());
    }

    #[test]
    fn a_file_that_is_not_toml_says_where() {
        let error = read("f", "a = 1\nb = = 2\n", |_| Some(())).unwrap_err();
        assert_eq!(error.list[0].line, 2, "{error}");
    }

    #[test]
    fn durations_and_sizes_are_read_back() {
        for d in [0, 1, 999, 1000, 60_000, 90_000, 7_200_000, 86_400_000] {
            let d = Duration::from_millis(d);
            assert_eq!(parse_duration(&show_duration(d)), Ok(d));
        }
        for s in [0, 1, 1024, 1536, 1 << 30, 10 << 30] {
            assert_eq!(parse_size(&show_size(s)), Ok(s));
        }
        assert!(parse_duration("99999999999999999d").is_err() && parse_size("1XB").is_err() && parse_duration("s").is_err());
    }
}
