//! `#[derive(Labels)]`.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::{DeriveInput, LitStr, Path, Result, ext::IdentExt, parse_quote, spanned::Spanned};

use crate::{
    attr::{self, Errors, Item},
    name,
};

const STRUCT_ITEMS: &[Item] = &[Item::once("crate", "crate = path")];
const FIELD_ITEMS: &[Item] = &[Item::once("name", "name = \"...\"")];

/// The implementation, or an error and beside it an implementation that spares the user errors about its absence.
pub(crate) fn expand(input: &DeriveInput) -> TokenStream {
    let mut krate: Path = parse_quote!(::metricbus);
    match implementation(input, &mut krate) {
        Ok(tokens) => tokens,
        Err(error) => {
            let error = error.into_compile_error();
            let ident = &input.ident;
            let (impl_generics, ty_generics, where_clause) = input.generics.split_for_impl();
            quote! {
                #error
                #[automatically_derived]
                impl #impl_generics #krate::Labels for #ident #ty_generics #where_clause {
                    const NAMES: &'static [&'static str] = &[];
                    fn visit(&self, _: &mut dyn ::core::ops::FnMut(usize, &dyn ::core::fmt::Display)) {}
                }
            }
        }
    }
}

fn implementation(input: &DeriveInput, krate: &mut Path) -> Result<TokenStream> {
    let mut errors = Errors::default();
    attr::read_items(
        &input.attrs,
        "label",
        "a struct of labels",
        STRUCT_ITEMS,
        &mut errors,
        |_, meta, _| {
            *krate = attr::crate_path(meta)?;
            Ok(())
        },
    );
    let fields = attr::named_fields(input, "Labels")?;
    if fields.is_empty() {
        errors.push(&input.ident, "a struct of labels has at least one field");
    }

    let params = attr::type_params(&input.generics);
    let mut generics = input.generics.clone();
    let mut names: Vec<LitStr> = Vec::new();
    let mut calls = Vec::new();
    for (i, field) in fields.iter().enumerate() {
        let Some(ident) = &field.ident else { continue };
        let mut name = LitStr::new(&ident.unraw().to_string(), ident.span());
        attr::read_items(
            &field.attrs,
            "label",
            "a label",
            FIELD_ITEMS,
            &mut errors,
            |_, meta, _| {
                name = attr::text(meta)?;
                Ok(())
            },
        );
        if let Err(why) = name::check_label(&name.value()) {
            errors.push(&name, why);
        }
        names.push(name);
        let ty = &field.ty;
        if attr::mentions(ty, &params) {
            let predicate = parse_quote!(#ty: ::core::fmt::Display);
            generics.make_where_clause().predicates.push(predicate);
        }
        // Located at the field, so that a type that can't be displayed is shown there; resolved as all other tokens are.
        let span = Span::call_site().located_at(ty.span());
        calls.push(quote_spanned! {span=> value(#i, &self.#ident); });
    }
    attr::check_label_twice(&[], &names.iter().collect::<Vec<_>>(), &mut errors);
    errors.finish()?;

    let ident = &input.ident;
    let (impl_generics, _, where_clause) = generics.split_for_impl();
    let (_, ty_generics, _) = input.generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #impl_generics #krate::Labels for #ident #ty_generics #where_clause {
            const NAMES: &'static [&'static str] = &[#(#names),*];

            fn visit(&self, value: &mut dyn ::core::ops::FnMut(usize, &dyn ::core::fmt::Display)) {
                #(#calls)*
            }
        }
    })
}
