//! Reading attributes: items by name, doc comments, and all errors of a struct at once.

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{
    Attribute, Error, Expr, ExprLit, Lit, LitStr, Meta, Path, Result, Token,
    ext::IdentExt,
    meta::ParseNestedMeta,
    parenthesized,
    parse::{Parse, ParseStream},
    punctuated::Punctuated,
};

use crate::name;

/// Errors gathered so far, so that a user sees all of them in one run of the compiler.
#[derive(Default)]
pub(crate) struct Errors(Option<Error>);

impl Errors {
    pub(crate) fn push(&mut self, at: impl ToTokens, message: impl std::fmt::Display) {
        self.add(Error::new_spanned(at, message));
    }

    pub(crate) fn add(&mut self, error: Error) {
        match &mut self.0 {
            Some(first) => first.combine(error),
            none => *none = Some(error),
        }
    }

    /// Takes the value, or the error and gives `None`.
    pub(crate) fn ok<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.add(error)).ok()
    }

    pub(crate) fn finish(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}

/// An item that an attribute can have: its name, and how it is written.
pub(crate) struct Item {
    pub(crate) name: &'static str,
    pub(crate) usage: &'static str,
    /// Given more than once, each adds to the ones before.
    pub(crate) repeatable: bool,
}

impl Item {
    pub(crate) const fn once(name: &'static str, usage: &'static str) -> Self {
        Item {
            name,
            usage,
            repeatable: false,
        }
    }

    pub(crate) const fn repeatable(name: &'static str, usage: &'static str) -> Self {
        Item {
            name,
            usage,
            repeatable: true,
        }
    }
}

/// Gives every item of the attributes called `attribute` to `read`, with its name. What is not among `items`, or there
/// twice, is an error that says so, and is passed over. `owner` is what the attribute describes, as in "a metric".
pub(crate) fn read_items(
    attrs: &[Attribute],
    attribute: &str,
    owner: &str,
    items: &[Item],
    errors: &mut Errors,
    mut read: impl FnMut(&str, &ParseNestedMeta<'_>, &mut Errors) -> Result<()>,
) {
    let mut seen: Vec<&str> = Vec::new();
    for attr in attrs.iter().filter(|attr| attr.path().is_ident(attribute)) {
        let result = attr.parse_nested_meta(|meta| {
            let found = items.iter().find(|item| meta.path.is_ident(item.name));
            let Some(item) = found else {
                let written = meta.path.to_token_stream().to_string().replace(' ', "");
                let usages: Vec<_> = items.iter().map(|item| item.usage).collect();
                errors.push(
                    &meta.path,
                    format!(
                        "unknown attribute `{written}`; {owner} takes {}",
                        usages.join(", ")
                    ),
                );
                return skip_value(meta.input);
            };
            if seen.contains(&item.name) && !item.repeatable {
                errors.push(&meta.path, format!("`{}` is given twice", item.name));
                return skip_value(meta.input);
            }
            seen.push(item.name);
            read(item.name, &meta, errors)
        });
        errors.ok(result);
    }
}

/// Passes over the rest of an item.
fn skip_value(input: ParseStream<'_>) -> Result<()> {
    while !input.is_empty() && !input.peek(Token![,]) {
        input.parse::<TokenTree>()?;
    }
    Ok(())
}

/// The text of `name = "text"`.
pub(crate) fn text(meta: &ParseNestedMeta<'_>) -> Result<LitStr> {
    meta.value()?.parse()
}

/// The path of `crate = path`.
pub(crate) fn crate_path(meta: &ParseNestedMeta<'_>) -> Result<Path> {
    meta.value()?.call(Path::parse_mod_style)
}

/// A constant label: `"name" = value`, where the value is anything that can be displayed.
#[derive(Clone)]
pub(crate) struct ConstLabel {
    pub(crate) name: LitStr,
    pub(crate) value: Expr,
}

impl Parse for ConstLabel {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let name = input.parse()?;
        input.parse::<Token![=]>()?;
        Ok(ConstLabel {
            name,
            value: input.parse()?,
        })
    }
}

/// The pairs of `label("name" = "value", …)`, those with a wrong name left out.
pub(crate) fn const_labels(
    meta: &ParseNestedMeta<'_>,
    errors: &mut Errors,
) -> Result<Vec<ConstLabel>> {
    let labels: Vec<ConstLabel> = list(meta, "label(\"name\" = \"value\")")?;
    Ok(labels
        .into_iter()
        .filter(|label| label_name_is_valid(&label.name, errors))
        .collect())
}

/// The names of `labels("a", "b")`, those that are wrong left out.
pub(crate) fn label_names(meta: &ParseNestedMeta<'_>, errors: &mut Errors) -> Result<Vec<LitStr>> {
    let names: Vec<LitStr> = list(meta, "labels(\"method\", \"code\")")?;
    Ok(names
        .into_iter()
        .filter(|name| label_name_is_valid(name, errors))
        .collect())
}

fn label_name_is_valid(name: &LitStr, errors: &mut Errors) -> bool {
    name::check_label(&name.value())
        .map_err(|why| errors.push(name, why))
        .is_ok()
}

fn list<T: Parse>(meta: &ParseNestedMeta<'_>, usage: &str) -> Result<Vec<T>> {
    if !meta.input.peek(syn::token::Paren) {
        return Err(Error::new_spanned(&meta.path, format!("write {usage}")));
    }
    let content;
    parenthesized!(content in meta.input);
    let list = Punctuated::<T, Token![,]>::parse_terminated(&content)?;
    if list.is_empty() {
        return Err(Error::new_spanned(
            &meta.path,
            format!("nothing is in the brackets; write {usage}"),
        ));
    }
    Ok(list.into_iter().collect())
}

/// An error at each of the names that is among the ones before it, or in `outer`.
pub(crate) fn check_label_twice(outer: &[&LitStr], names: &[&LitStr], errors: &mut Errors) {
    for (i, name) in names.iter().enumerate() {
        let earlier = outer.iter().chain(&names[..i]);
        if earlier
            .into_iter()
            .any(|earlier| earlier.value() == name.value())
        {
            errors.push(name, format!("label {:?} is given twice", name.value()));
        }
    }
}

/// The paragraphs of a doc comment, each on one line.
pub(crate) fn doc_paragraphs(attrs: &[Attribute]) -> Result<Vec<String>> {
    let mut paragraphs = vec![String::new()];
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("doc")) {
        // `#[doc(hidden)]` and its like are no text.
        let Meta::NameValue(doc) = &attr.meta else {
            continue;
        };
        let Some(text) = literal_text(&doc.value) else {
            return Err(Error::new_spanned(
                &doc.value,
                "only a literal doc comment can be read as help; give it as help = \"...\"",
            ));
        };
        for line in text.lines() {
            // The margin of a block comment.
            let line = line.trim();
            let line = if text.contains('\n') {
                line.strip_prefix("* ")
                    .unwrap_or(if line == "*" { "" } else { line })
            } else {
                line
            };
            add_line(&mut paragraphs, line.trim());
        }
        if text.trim().is_empty() {
            add_line(&mut paragraphs, "");
        }
    }
    paragraphs.retain(|paragraph| !paragraph.is_empty());
    Ok(paragraphs)
}

fn add_line(paragraphs: &mut Vec<String>, line: &str) {
    if line.is_empty() {
        paragraphs.push(String::new());
        return;
    }
    if let Some(last) = paragraphs.last_mut() {
        if !last.is_empty() {
            last.push(' ');
        }
        last.push_str(line);
    }
}

/// The text of a literal, also of one that a `macro_rules` passed on.
fn literal_text(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Group(group) => literal_text(&group.expr),
        Expr::Lit(ExprLit {
            lit: Lit::Str(text),
            ..
        }) => Some(text.value()),
        _ => None,
    }
}

/// Whether any of the names occurs in the tokens.
pub(crate) fn mentions(tokens: impl ToTokens, names: &[String]) -> bool {
    fn search(tokens: TokenStream, names: &[String]) -> bool {
        tokens.into_iter().any(|token| match token {
            TokenTree::Ident(ident) => names.contains(&ident.unraw().to_string()),
            TokenTree::Group(group) => search(group.stream(), names),
            _ => false,
        })
    }
    !names.is_empty() && search(tokens.into_token_stream(), names)
}

/// The names of the type parameters.
pub(crate) fn type_params(generics: &syn::Generics) -> Vec<String> {
    generics
        .type_params()
        .map(|param| param.ident.unraw().to_string())
        .collect()
}

/// The named fields, or an error that says what would be right.
pub(crate) fn named_fields<'a>(
    input: &'a syn::DeriveInput,
    derive: &str,
) -> Result<&'a Punctuated<syn::Field, Token![,]>> {
    let what = match &input.data {
        syn::Data::Struct(data) => match &data.fields {
            syn::Fields::Named(fields) => return Ok(&fields.named),
            syn::Fields::Unnamed(_) => "a tuple struct",
            syn::Fields::Unit => "a unit struct",
        },
        syn::Data::Enum(_) => "an enum",
        syn::Data::Union(_) => "a union",
    };
    Err(Error::new_spanned(
        &input.ident,
        format!(
            "{derive} can be derived for a struct with named fields only; `{}` is {what}",
            input.ident
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use syn::parse_quote;

    fn paragraphs(item: syn::ItemStruct) -> Vec<String> {
        doc_paragraphs(&item.attrs).unwrap()
    }

    #[test]
    fn the_lines_of_a_paragraph_are_joined_and_trimmed() {
        let item = parse_quote! {
            ///   Requests served,
            /// whatever came of them.
            ///
            ///
            /// * A list in the comment.
            #[doc(hidden)]
            struct A;
        };
        assert_eq!(
            paragraphs(item),
            [
                "Requests served, whatever came of them.",
                "* A list in the comment."
            ]
        );
    }

    #[test]
    fn a_block_comment_is_read_without_its_margin() {
        let item = parse_quote! {
            /**
             * Requests served,
             * whatever came of them.
             *
             * More.
             */
            struct A;
        };
        assert_eq!(
            paragraphs(item),
            ["Requests served, whatever came of them.", "More."]
        );
        assert_eq!(
            paragraphs(parse_quote!(
                /** One line. */
                struct A;
            )),
            ["One line."]
        );
    }

    #[test]
    fn a_doc_comment_that_is_no_literal_is_an_error() {
        let item: syn::ItemStruct = parse_quote!(
            #[doc = concat!("a", "b")]
            struct A;
        );
        assert!(doc_paragraphs(&item.attrs).is_err());
        assert_eq!(
            paragraphs(parse_quote!(
                struct A;
            )),
            [""; 0]
        );
    }

    #[test]
    fn a_name_is_found_however_deep_it_is() {
        let names = ["T".to_owned()];
        assert!(mentions(
            quote::quote!(Family<Counter, (u8, [By<T>; 2])>),
            &names
        ));
        assert!(!mentions(quote::quote!(Family<Counter, Type>), &names));
        assert!(!mentions(quote::quote!(T), &[]));
    }
}
