//! Builds the part of the benches that is in C.

fn main() {
    println!("cargo::rerun-if-changed=c/bench.c");
    println!("cargo::rerun-if-changed=../capi/include/metricbus.h");
    cc::Build::new()
        .file("c/bench.c")
        .include("../capi/include")
        .std("c11")
        .opt_level(2)
        .warnings(true)
        .compile("metricbus_bench_c");
}
