//! What the documents say of names and versions is so.

use std::{
    collections::BTreeSet,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

type Outcome = Result<(), Box<dyn Error>>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All files below, but what is built.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" {
                found.extend(files(&path, endings));
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
    found
}

fn documents() -> Vec<PathBuf> {
    let mut found = files(&root().join("docs"), &[".md"]);
    found.extend(["README.md", "python/README.md", "capi/README.md"].map(|name| root().join(name)));
    found
}

/// Names of metrics of ours, in text of any kind: what begins so, of at least three words.
fn names(text: &str) -> BTreeSet<&str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let all = text.split(|c| !word(c));
    all.filter(|name| name.starts_with("metricbus_") && name.matches('_').count() > 1)
        .map(|name| name.trim_end_matches('_'))
        .collect()
}

#[test]
fn every_metric_that_a_document_names_is_exposed() -> Outcome {
    let mut code = String::new();
    for folder in ["src", "python/metricbus", "python/src"] {
        for file in files(&root().join(folder), &[".rs", ".py"]) {
            let text = fs::read_to_string(&file)?;
            code.extend(
                text.lines()
                    .filter(|line| !line.trim_start().starts_with("//"))
                    .map(|line| format!("{line}\n")),
            );
        }
    }
    let exposed = names(&code);
    // A histogram is exposed under more names than it has.
    let is_exposed = |name: &str| {
        exposed.contains(name)
            || ["_bucket", "_sum", "_count"].iter().any(|part| {
                name.strip_suffix(part)
                    .is_some_and(|base| exposed.contains(base))
            })
            || exposed
                .iter()
                .any(|known| known.starts_with(&format!("{name}_")))
            // Of these the code has what comes behind.
            || ["metricbus_nats_", "metricbus_otlp_"].iter().any(|group| {
                name.strip_prefix(group)
                    .is_some_and(|rest| code.contains(&format!("\"{rest}\"")))
            })
    };
    let mut unknown = Vec::new();
    let mut seen = 0;
    let mut look = |file: &Path, text: &str| {
        for name in names(text) {
            seen += 1;
            if !is_exposed(name) {
                unknown.push(format!("{}: {name}", file.display()));
            }
        }
    };
    for file in documents() {
        look(&file, &fs::read_to_string(&file)?);
    }
    for file in files(&root().join("src"), &[".rs"]) {
        let text = fs::read_to_string(&file)?;
        let comments: String = text
            .lines()
            .filter(|line| line.trim_start().starts_with("//"))
            .map(|line| format!("{line}\n"))
            .collect();
        look(&file, &comments);
    }
    assert!(seen > 50, "only {seen} names were found");
    assert!(unknown.is_empty(), "{unknown:#?}");
    Ok(())
}

/// On a page, unlike in rustdoc, a line that begins with `# ` is shown.
#[test]
fn no_document_shows_a_line_that_rustdoc_would_hide() -> Outcome {
    for file in documents() {
        let text = fs::read_to_string(&file)?;
        let mut rust = false;
        for (number, line) in text.lines().enumerate() {
            if let Some(language) = line.strip_prefix("```") {
                rust = language.starts_with("rust");
            }
            let hidden = rust && (line == "#" || line.starts_with("# "));
            assert!(!hidden, "{}:{}: {line}", file.display(), number + 1);
        }
    }
    Ok(())
}

/// "1.89" and "1.89.0" are the same.
fn version(text: &str) -> [u64; 3] {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    [(); 3].map(|()| parts.next().unwrap_or(0))
}

/// Whoever has the version of Rust that we ask for can build all that we need. Not for what only tests and benches need.
#[test]
fn the_rust_version_is_what_the_dependencies_need() -> Outcome {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--format-version=1",
            "--locked",
            "--offline",
            "--all-features",
        ])
        .current_dir(root())
        .output()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages = list(&metadata["packages"]);
    let nodes = list(&metadata["resolve"]["nodes"]);

    // From what is published, along all that is not for development.
    let published = ["metricbus", "metricbus-capi", "metricbus-python"];
    let mut waiting: Vec<String> = packages
        .iter()
        .filter(|package| published.contains(&&*text(&package["name"])))
        .map(|package| text(&package["id"]))
        .collect();
    assert_eq!(waiting.len(), published.len());
    let mut needed = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if !needed.insert(id.clone()) {
            continue;
        }
        let node = nodes
            .iter()
            .find(|node| text(&node["id"]) == id)
            .ok_or("no node")?;
        for dependency in list(&node["deps"]) {
            if list(&dependency["dep_kinds"])
                .iter()
                .any(|kind| kind["kind"] != "dev")
            {
                waiting.push(text(&dependency["pkg"]));
            }
        }
    }
    assert!(needed.len() > 100, "only {} packages", needed.len());
    let wants = |package: &Value| version(&text(&package["rust_version"]));
    let ours = packages
        .iter()
        .find(|package| package["name"] == "metricbus")
        .ok_or("not there")?;
    for package in &packages {
        if needed.contains(&text(&package["id"])) && package["rust_version"].is_string() {
            assert!(
                wants(package) <= wants(ours),
                "{} {} needs Rust {}, and we say {}",
                package["name"],
                package["version"],
                package["rust_version"],
                ours["rust_version"]
            );
        }
    }
    let readme = fs::read_to_string(root().join("README.md"))?;
    let said = format!("({} or newer)", text(&ours["rust_version"]));
    assert!(readme.contains(&said), "README.md does not say {said:?}");
    Ok(())
}
