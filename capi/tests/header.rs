//! The header is generated from the Rust side, and kept in the repository.

use std::{env, fs, path::Path};

/// In the order in which they should stand in the header.
const SOURCES: [&str; 9] = [
    "../src/backend/libnv/abi.rs",
    "src/status.rs",
    "src/bus.rs",
    "src/counter.rs",
    "src/gauge.rs",
    "src/histogram.rs",
    "src/listen.rs",
    "src/window.rs",
    "src/serve.rs",
];

fn generated() -> String {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(here.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(here.join(source));
    }
    let mut out = Vec::new();
    builder.generate().unwrap().write(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn the_header_is_what_the_rust_side_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/metricbus.h");
    let generated = generated();
    if env::var("METRICBUS_HEADER").as_deref() == Ok("write") {
        fs::write(&path, &generated).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == generated,
        "capi/include/metricbus.h is stale; to write it anew: \
         METRICBUS_HEADER=write cargo test -p metricbus-capi --test header"
    );
}

#[test]
fn the_header_has_every_function_that_the_library_exports() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let header = generated();
    let exports = fs::read_to_string(here.join("src/exports.rs")).unwrap();
    let mut functions = 0;
    for source in SOURCES {
        let text = fs::read_to_string(here.join(source)).unwrap();
        for line in text
            .lines()
            .filter(|line| line.contains("extern \"C\" fn mb_"))
        {
            let name = line.split("fn ").nth(1).unwrap().split('(').next().unwrap();
            assert!(header.contains(&format!("{name}(")), "{name}");
            assert!(exports.contains(&format!("Export({name} as")), "{name}");
            functions += 1;
        }
    }
    assert!(functions > 40, "{functions}");
}
