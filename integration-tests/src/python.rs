//! The parsers of Python's `prometheus_client`, which read our output and say what they understood.

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
    thread,
};

use serde_json::{Value, json};

use crate::parts;

/// Which of its two parsers is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parser {
    /// `prometheus_client.openmetrics.parser`, which refuses what the OpenMetrics standard does.
    OpenMetrics,
    /// `prometheus_client.parser`, for the text format 0.0.4.
    Text,
}

/// A family as a parser understood it.
#[derive(Debug, Clone, PartialEq)]
pub struct ParsedFamily {
    /// A counter's is without `_total`, in both formats.
    pub name: String,
    /// Such as `counter`.
    pub kind: String,
    /// Without escapes.
    pub help: String,
    /// Empty if there is none, and always in the text format.
    pub unit: String,
    /// In the order of the document.
    pub samples: Vec<ParsedSample>,
}

/// One line of a document.
#[derive(Debug, Clone, PartialEq)]
pub struct ParsedSample {
    /// With the suffix.
    pub name: String,
    /// Without escapes.
    pub labels: BTreeMap<String, String>,
    /// As Python prints it: `3` for an integer, `nan`, `inf`, `1e-320`. Rust's `parse` reads all of them.
    pub value: String,
    /// The exemplar behind it: labels without escapes, value and seconds since 1970, as Python prints them.
    pub exemplar: Option<(BTreeMap<String, String>, String, String)>,
}

/// What became of a document: its families, or why the parser refused it.
pub type Parsed = Result<Vec<ParsedFamily>, String>;

/// Parses many documents in one run of Python. `None` if there is no Python with `prometheus_client` here.
pub fn parse(documents: &[(Parser, &str)]) -> Option<Vec<Parsed>> {
    let python = parts::python()?;
    let mut input = String::new();
    for (parser, text) in documents {
        let parser = match parser {
            Parser::OpenMetrics => "openmetrics",
            Parser::Text => "text",
        };
        input += &json!({ "parser": parser, "text": text }).to_string();
        input.push('\n');
    }
    let mut child = Command::new(python)
        .arg(parts::checkout().join("integration-tests/python/parse.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|why| panic!("Python did not start: {why}"));
    let mut stdin = child.stdin.take();
    let output = thread::scope(|scope| {
        // Beside the reading, so that neither side waits for the other with a full pipe.
        scope.spawn(move || {
            if let Some(stdin) = &mut stdin {
                // If it ended early, its exit code and standard error tell more than this would.
                let _ = stdin.write_all(input.as_bytes());
            }
        });
        child.wait_with_output()
    })
    .unwrap_or_else(|why| panic!("Python: {why}"));
    assert!(
        output.status.success(),
        "parse.py failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );

    let parsed: Vec<Parsed> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| {
            let answer: Value =
                serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}"));
            outcome(&answer).unwrap_or_else(|| panic!("not an answer of parse.py: {line}"))
        })
        .collect();
    assert_eq!(parsed.len(), documents.len(), "one answer per document");
    Some(parsed)
}

fn outcome(answer: &Value) -> Option<Parsed> {
    if let Some(error) = answer["error"].as_str() {
        return Some(Err(error.to_owned()));
    }
    let families = answer["families"].as_array()?;
    Some(Ok(families.iter().map(family).collect::<Option<_>>()?))
}

fn family(json: &Value) -> Option<ParsedFamily> {
    let text = |key: &str| Some(json[key].as_str()?.to_owned());
    Some(ParsedFamily {
        name: text("name")?,
        kind: text("type")?,
        help: text("help")?,
        unit: text("unit")?,
        samples: json["samples"]
            .as_array()?
            .iter()
            .map(sample)
            .collect::<Option<_>>()?,
    })
}

fn sample(json: &Value) -> Option<ParsedSample> {
    let text = |json: &Value| Some(json.as_str()?.to_owned());
    let labels = |json: &Value| -> Option<BTreeMap<String, String>> {
        let pairs = json.as_object()?.iter();
        pairs
            .map(|(name, value)| Some((name.clone(), text(value)?)))
            .collect()
    };
    let exemplar = match &json[3] {
        Value::Null => None,
        it => Some((labels(&it[0])?, text(&it[1])?, text(&it[2])?)),
    };
    let labels = labels(&json[1])?;
    Some(ParsedSample {
        name: json[0].as_str()?.to_owned(),
        labels,
        value: text(&json[2])?,
        exemplar,
    })
}
