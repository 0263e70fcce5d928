//! A program that hands its bus to a library it loads has to export the functions which that library calls.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bin=share-bus=-rdynamic");
}
