//! Has the shared source files take their atomics from loom.

fn main() {
    println!("cargo::rustc-cfg=metricbus_loom");
    println!("cargo::rerun-if-changed=build.rs");
}
