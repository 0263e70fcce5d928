//! stub
use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

mod attr;
mod labels;
mod metrics;
mod name;

/// Metrics
#[proc_macro_derive(Metrics, attributes(metrics, metric))]
pub fn derive_metrics(input: TokenStream) -> TokenStream {
    metrics::expand(&parse_macro_input!(input as DeriveInput)).into()
}

/// Labels
#[proc_macro_derive(Labels, attributes(label))]
pub fn derive_labels(input: TokenStream) -> TokenStream {
    labels::expand(&parse_macro_input!(input as DeriveInput)).into()
}
