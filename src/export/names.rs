//! `?name[]=`: a scrape of some samples only. Works on the text that all others get.

use bytes::Bytes;

/// The names of samples that a request wants. None: all of them.
pub(super) fn wanted(query: Option<&str>) -> Vec<String> {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs
        .filter(|(key, _)| key == "name[]")
        .map(|(_, name)| name.into_owned())
        .collect()
}

/// The samples of these names, with what is said of their metrics.
pub(super) fn only(text: &[u8], names: &[String]) -> Bytes {
    let mut out = Vec::new();
    // What was said of the metric whose samples follow, until one of them is wanted.
    let mut head: Vec<&[u8]> = Vec::new();
    let mut family: &[u8] = b"";
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        if line == b"# EOF\n" {
            out.extend_from_slice(line);
        } else if line.starts_with(b"# ") {
            let after_word = line[2..].iter().position(|&byte| byte == b' ');
            let of = after_word.map_or(&[][..], |at| &line[2 + at + 1..]);
            // A name in quotes may have spaces.
            let end: &[u8] = if of.starts_with(b"\"") { b"\"" } else { b" \n" };
            let length = of.iter().skip(1).position(|byte| end.contains(byte));
            let of = length.map_or(of, |at| &of[..=at]);
            if of != family {
                family = of;
                head.clear();
            }
            head.push(line);
        } else if names.iter().any(|name| sample(line) == name.as_bytes()) {
            for said in head.drain(..) {
                out.extend_from_slice(said);
            }
            out.extend_from_slice(line);
        }
    }
    out.into()
}

/// The name of a sample: before its labels, or the first thing in quotes among them.
fn sample(line: &[u8]) -> &[u8] {
    let until = |text: &[u8], end: &[u8]| text.iter().position(|byte| end.contains(byte));
    match line.strip_prefix(b"{\"") {
        Some(rest) => &rest[..until(rest, b"\"").unwrap_or(rest.len())],
        None => &line[..until(line, b"{ ").unwrap_or(line.len())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_samples_come_with_their_heads() {
        let text = "# HELP a A.\n# TYPE a histogram\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n\
                    # HELP b B.\n# TYPE b gauge\nb 2\n# TYPE c.d gauge\n{\"c.d\",x=\"y\"} 3\n# EOF\n";
        let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        let some = |all: &[&str]| only(text.as_bytes(), &names(all));
        assert_eq!(
            some(&["a_count", "a_sum"]),
            "# HELP a A.\n# TYPE a histogram\na_sum 1\na_count 1\n# EOF\n"
        );
        assert_eq!(some(&["b"]), "# HELP b B.\n# TYPE b gauge\nb 2\n# EOF\n");
        assert_eq!(
            some(&["c.d"]),
            "# TYPE c.d gauge\n{\"c.d\",x=\"y\"} 3\n# EOF\n"
        );
        assert_eq!(some(&["a", "nobody"]), "# EOF\n");
        let spaces = "# TYPE \"a b\" gauge\n{\"a b\"} 1\n# TYPE \"a c\" gauge\n{\"a c\"} 2\n";
        assert_eq!(
            only(spaces.as_bytes(), &names(&["a c"])),
            "# TYPE \"a c\" gauge\n{\"a c\"} 2\n"
        );
        assert_eq!(wanted(Some("name[]=a&x=y&name%5B%5D=b%20c")), ["a", "b c"]);
        assert!(wanted(None).is_empty());
    }
}
