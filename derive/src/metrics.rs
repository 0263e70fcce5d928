//! `#[derive(Metrics)]`: reads the struct into [`Component`], checks what can be known, writes the registration.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::{
    Attribute, DeriveInput, Error, Expr, ExprLit, GenericArgument, Ident, Lit, LitStr, Path,
    PathArguments, Result, Type, UnOp, ext::IdentExt, parse_quote, spanned::Spanned,
};

use crate::{
    attr::{self, ConstLabel, Errors, Item},
    name,
};

const LABEL: Item = Item::repeatable("label", "label(\"name\" = \"value\")");
const PREFIX: Item = Item::once("prefix", "prefix = \"...\"");
const STRUCT_ITEMS: &[Item] = &[
    PREFIX,
    Item::once("component", "component = \"...\""),
    LABEL,
    Item::once("crate", "crate = path"),
];
const NESTED_ITEMS: &[Item] = &[Item::once("nested", "nested"), PREFIX, LABEL];
const METRIC_ITEMS: &[Item] = &[
    Item::once("name", "name = \"...\""),
    Item::once("help", "help = \"...\""),
    Item::once("unit", "unit = \"seconds\""),
    LABEL,
    Item::once("labels", "labels(\"method\", \"code\")"),
    Item::once("buckets", "buckets = [0.1, 1.0]"),
    Item::once("native", "native = true"),
    Item::once("initial", "initial = 0"),
    Item::once("series_max", "series_max = 100"),
    Item::once("expire_after_secs", "expire_after_secs = 60"),
];
const ALLOWED: &str = "a field is a Counter, Counter<f64>, Gauge, Histogram or Family of one of them; \
     write #[metrics(nested)] for a struct that derives Metrics itself";

/// The implementation, or an error and beside it an implementation that spares the user errors about its absence.
pub(crate) fn expand(input: &DeriveInput) -> TokenStream {
    let mut krate: Path = parse_quote!(::metricbus);
    match Component::read(input, &mut krate) {
        Ok(component) => component.implementation(input, &krate),
        Err(error) => {
            let error = error.into_compile_error();
            let ident = &input.ident;
            let (impl_generics, ty_generics, where_clause) = input.generics.split_for_impl();
            quote! {
                #error
                #[automatically_derived]
                impl #impl_generics #krate::Metrics for #ident #ty_generics #where_clause {
                    fn register(_: &#krate::Scope) -> ::core::result::Result<Self, #krate::DeclareError> {
                        ::core::unimplemented!()
                    }
                }
            }
        }
    }
}

/// A prefix and labels that a struct or a nested field puts on what is in it.
#[derive(Default)]
struct Surroundings {
    prefix: Option<LitStr>,
    labels: Vec<ConstLabel>,
}

struct Component<'a> {
    surroundings: Surroundings,
    name: String,
    help: String,
    fields: Vec<Field<'a>>,
}

struct Field<'a> {
    ident: &'a Ident,
    ty: &'a Type,
    content: Content<'a>,
}

enum Content<'a> {
    Nested(Surroundings),
    Metric(Box<Metric<'a>>),
}

struct Metric<'a> {
    shape: Shape<'a>,
    name: LitStr,
    help: String,
    unit: Option<LitStr>,
    labels: Vec<ConstLabel>,
    family_labels: Vec<LitStr>,
    buckets: Option<Expr>,
    native: Option<Expr>,
    initial: Option<Expr>,
    series_max: Option<Expr>,
    expire_after_secs: Option<Expr>,
}

#[derive(Clone, Copy)]
enum Shape<'a> {
    Single(Kind),
    Family {
        metric: &'a Type,
        kind: Kind,
        /// The type that has the labels, unless they are given as text.
        labels: Option<&'a Type>,
    },
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Histogram,
    /// A counter or a gauge, by its name.
    Other(&'static str),
    /// A type parameter: whatever it will be.
    Unknown,
}

impl<'a> Component<'a> {
    fn read(input: &'a DeriveInput, krate: &mut Path) -> Result<Self> {
        let mut errors = Errors::default();
        let mut surroundings = Surroundings::default();
        let mut name = input.ident.unraw().to_string();
        attr::read_items(
            &input.attrs,
            "metrics",
            "a struct of metrics",
            STRUCT_ITEMS,
            &mut errors,
            |item, meta, errors| {
                match item {
                    "component" => {
                        let text = attr::text(meta)?;
                        if text.value().trim().is_empty() {
                            errors.push(&text, "a component's name is not empty; left out, it is the struct's name");
                        }
                        name = text.value();
                    }
                    "crate" => *krate = attr::crate_path(meta)?,
                    item => surroundings.read(item, meta, errors)?,
                }
                Ok(())
            },
        );
        misplaced(
            &input.attrs,
            "metric",
            "a struct's attributes are written #[metrics(...)]",
            &mut errors,
        );
        attr::check_label_twice(&[], &surroundings.label_names(), &mut errors);
        // A struct's help may be missing, so one that can't be read is no error.
        let paragraphs = attr::doc_paragraphs(&input.attrs).unwrap_or_default();
        let help = paragraphs.into_iter().next().unwrap_or_default();

        let params = attr::type_params(&input.generics);
        let mut fields = Vec::new();
        match attr::named_fields(input, "Metrics") {
            Ok(named) => {
                for field in named {
                    let Some(ident) = &field.ident else { continue };
                    let content = read_field(field, ident, &surroundings, &params, &mut errors);
                    if let Some(content) = errors.ok(content) {
                        fields.push(Field {
                            ident,
                            ty: &field.ty,
                            content,
                        });
                    }
                }
            }
            Err(error) => errors.add(error),
        }
        let component = Component {
            surroundings,
            name,
            help,
            fields,
        };
        component.check_names_differ(&mut errors);
        errors.finish()?;
        Ok(component)
    }

    fn metrics(&self) -> impl Iterator<Item = (&Field<'a>, &Metric<'a>)> {
        self.fields.iter().filter_map(|field| match &field.content {
            Content::Metric(metric) => Some((field, &**metric)),
            Content::Nested(_) => None,
        })
    }

    /// Two fields may share a metric only if the values of the same constant labels tell them apart.
    fn check_names_differ(&self, errors: &mut Errors) {
        let label_names = |labels: &[(String, String)]| -> Vec<String> {
            labels.iter().map(|(name, _)| name.clone()).collect()
        };
        let metrics: Vec<_> = self.metrics().collect();
        for (i, (_, metric)) in metrics.iter().enumerate() {
            let labels = metric.label_values();
            let clash = metrics[..i].iter().find(|(_, earlier)| {
                let before = earlier.label_values();
                earlier.name.value() == metric.name.value()
                    && (before == labels || label_names(&before) != label_names(&labels))
            });
            if let Some((earlier, _)) = clash {
                errors.push(
                    &metric.name,
                    format!(
                        "metric {:?} is declared by field `{}` already; give one of them another name, \
                         or both the same label(\"name\" = \"value\") with different values",
                        metric.name.value(),
                        earlier.ident,
                    ),
                );
            }
        }
    }

    fn implementation(&self, input: &DeriveInput, krate: &Path) -> TokenStream {
        // Not to be seen by the expressions that attributes hold.
        let scope = Ident::new("scope", Span::mixed_site());
        let made = Ident::new("made", Span::mixed_site());
        let names = Ident::new("names", Span::mixed_site());

        let params = attr::type_params(&input.generics);
        let mut generics = input.generics.clone();
        let mut bound = |ty: &Type, bound: TokenStream| {
            if attr::mentions(ty, &params) {
                generics
                    .make_where_clause()
                    .predicates
                    .push(parse_quote!(#ty: #bound));
            }
        };
        for field in &self.fields {
            match &field.content {
                Content::Nested(_) => bound(field.ty, quote!(#krate::Metrics)),
                Content::Metric(metric) => match metric.shape {
                    Shape::Single(_) => bound(field.ty, quote!(#krate::Metric)),
                    Shape::Family { metric, labels, .. } => {
                        bound(metric, quote!(#krate::Metric));
                        if let Some(labels) = labels {
                            bound(labels, quote!(#krate::Labels));
                        }
                    }
                },
            }
        }

        let sub_scope = self.surroundings.scope(&scope);
        let sub_scope = sub_scope.map(|sub| quote!(let #scope = &#sub;));
        let fields = self.fields.iter().map(|field| {
            let (ident, ty) = (field.ident, field.ty);
            let value = match &field.content {
                Content::Nested(surroundings) => {
                    let inner = surroundings
                        .scope(&scope)
                        .map_or(quote!(#scope), |sub| quote!(&#sub));
                    quote!(<#ty as #krate::Metrics>::register(#inner)?)
                }
                Content::Metric(metric) => metric.declaration(&scope, ty, krate),
            };
            quote!(#ident: #value)
        });
        let mut metric_names: Vec<String> = Vec::new();
        for (_, metric) in self.metrics() {
            let name = metric.name.value();
            if !metric_names.contains(&name) {
                metric_names.push(name);
            }
        }
        let count = metric_names.len();

        let (component, help, ident) = (&self.name, &self.help, &input.ident);
        let (impl_generics, _, where_clause) = generics.split_for_impl();
        let (_, ty_generics, _) = input.generics.split_for_impl();
        quote! {
            #[automatically_derived]
            impl #impl_generics #krate::Metrics for #ident #ty_generics #where_clause {
                fn register(#scope: &#krate::Scope) -> ::core::result::Result<Self, #krate::DeclareError> {
                    #sub_scope
                    let #made = Self { #(#fields),* };
                    let #names: [::std::string::String; #count] =
                        [#(::std::format!("{}{}", #scope.prefix(), #metric_names)),*];
                    #scope.add_component(#component, #help, &#names.each_ref().map(::std::string::String::as_str))?;
                    ::core::result::Result::Ok(#made)
                }
            }
        }
    }
}

impl Surroundings {
    fn read(
        &mut self,
        item: &str,
        meta: &syn::meta::ParseNestedMeta<'_>,
        errors: &mut Errors,
    ) -> Result<()> {
        match item {
            "prefix" => {
                let prefix = attr::text(meta)?;
                if let Err(why) = name::check_prefix(&prefix.value()) {
                    errors.push(&prefix, why);
                }
                self.prefix = Some(prefix);
            }
            "label" => self.labels.extend(attr::const_labels(meta, errors)?),
            _ => {}
        }
        Ok(())
    }

    fn label_names(&self) -> Vec<&LitStr> {
        self.labels.iter().map(|label| &label.name).collect()
    }

    /// The scope inside, unless it is the one outside.
    fn scope(&self, outside: &Ident) -> Option<TokenStream> {
        if self.prefix.is_none() && self.labels.is_empty() {
            return None;
        }
        let prefix = self.prefix.iter();
        let labels = self
            .labels
            .iter()
            .map(|ConstLabel { name, value }| quote!(.with_label(#name, #value)));
        Some(quote!(#outside #(.with_prefix(#prefix))* #(#labels)*))
    }
}

fn read_field<'a>(
    field: &'a syn::Field,
    ident: &Ident,
    surroundings: &Surroundings,
    params: &[String],
    errors: &mut Errors,
) -> Result<Content<'a>> {
    if is_nested(&field.attrs) {
        return read_nested(field, surroundings, errors).map(Content::Nested);
    }
    let shape = Shape::read(&field.ty, params)?;
    misplaced(
        &field.attrs,
        "metrics",
        "a metric's attributes are written #[metric(...)]",
        errors,
    );
    let metric = Metric::read(field, ident, shape, surroundings, errors);
    Ok(Content::Metric(Box::new(metric)))
}

/// Whether the word is there at all, so that an error beside it does not make the field a metric.
fn is_nested(attrs: &[Attribute]) -> bool {
    attrs
        .iter()
        .filter(|attr| attr.path().is_ident("metrics"))
        .any(|attr| attr::mentions(&attr.meta, &["nested".to_owned()]))
}

fn read_nested(
    field: &syn::Field,
    surroundings: &Surroundings,
    errors: &mut Errors,
) -> Result<Surroundings> {
    let mut inner = Surroundings::default();
    attr::read_items(
        &field.attrs,
        "metrics",
        "a nested struct",
        NESTED_ITEMS,
        errors,
        |item, meta, errors| match item {
            "nested" => Ok(()),
            item => inner.read(item, meta, errors),
        },
    );
    misplaced(
        &field.attrs,
        "metric",
        "a nested struct is no metric; its attributes are written #[metrics(nested, ...)]",
        errors,
    );
    attr::check_label_twice(&surroundings.label_names(), &inner.label_names(), errors);
    if let Some(name) = metric_type(&field.ty) {
        return Err(Error::new_spanned(
            &field.ty,
            format!("{name} is a metric, not a struct of metrics; leave out `nested`"),
        ));
    }
    Ok(inner)
}

/// An error at each attribute of that name.
fn misplaced(attrs: &[Attribute], name: &str, message: &str, errors: &mut Errors) {
    for attr in attrs.iter().filter(|attr| attr.path().is_ident(name)) {
        errors.push(attr, message);
    }
}

impl<'a> Shape<'a> {
    fn read(ty: &'a Type, params: &[String]) -> Result<Self> {
        let kind = |ty: &Type| match metric_type(ty) {
            Some("Family") => None,
            Some("Histogram") => Some(Kind::Histogram),
            Some(name) => Some(Kind::Other(name)),
            None => is_param(ty, params).then_some(Kind::Unknown),
        };
        if let Some(kind) = kind(ty) {
            return Ok(Shape::Single(kind));
        }
        if metric_type(ty).is_none() {
            return Err(Error::new_spanned(ty, ALLOWED));
        }
        let mut types = type_arguments(ty).into_iter();
        let Some(metric) = types.next() else {
            return Err(Error::new_spanned(
                ty,
                "say of what the family is, as in Family<Counter>",
            ));
        };
        let Some(kind) = kind(metric) else {
            return Err(Error::new_spanned(
                metric,
                "a family is of Counter, Counter<f64>, Gauge or Histogram",
            ));
        };
        // `()` is the default, and means text.
        let labels = types
            .next()
            .filter(|ty| !matches!(ty, Type::Tuple(tuple) if tuple.elems.is_empty()));
        Ok(Shape::Family {
            metric,
            kind,
            labels,
        })
    }

    fn kind(self) -> Kind {
        match self {
            Shape::Single(kind) | Shape::Family { kind, .. } => kind,
        }
    }
}

/// Which of our types the last segment of the type's path names.
fn metric_type(ty: &Type) -> Option<&'static str> {
    let Type::Path(path) = plain(ty) else {
        return None;
    };
    let last = path.path.segments.last()?;
    ["Counter", "Gauge", "Histogram", "Family"]
        .into_iter()
        .find(|name| last.ident == name)
}

fn is_param(ty: &Type, params: &[String]) -> bool {
    matches!(plain(ty), Type::Path(path)
        if path.qself.is_none() && path.path.get_ident().is_some_and(|ident| params.contains(&ident.unraw().to_string())))
}

/// The type without brackets, those of a `macro_rules` included.
fn plain(ty: &Type) -> &Type {
    match ty {
        Type::Group(group) => plain(&group.elem),
        Type::Paren(paren) => plain(&paren.elem),
        ty => ty,
    }
}

fn type_arguments(ty: &Type) -> Vec<&Type> {
    let Type::Path(path) = plain(ty) else {
        return Vec::new();
    };
    match path.path.segments.last().map(|last| &last.arguments) {
        Some(PathArguments::AngleBracketed(arguments)) => arguments
            .args
            .iter()
            .filter_map(|argument| match argument {
                GenericArgument::Type(ty) => Some(ty),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

impl<'a> Metric<'a> {
    fn read(
        field: &'a syn::Field,
        ident: &Ident,
        shape: Shape<'a>,
        surroundings: &Surroundings,
        errors: &mut Errors,
    ) -> Self {
        let mut metric = Metric {
            shape,
            name: LitStr::new(&ident.unraw().to_string(), ident.span()),
            help: String::new(),
            unit: None,
            labels: Vec::new(),
            family_labels: Vec::new(),
            buckets: None,
            native: None,
            initial: None,
            series_max: None,
            expire_after_secs: None,
        };
        let mut help: Option<LitStr> = None;
        let mut family_labels_at: Option<Path> = None;
        attr::read_items(
            &field.attrs,
            "metric",
            "a metric",
            METRIC_ITEMS,
            errors,
            |item, meta, errors| {
                match item {
                    "name" => metric.name = attr::text(meta)?,
                    "help" => help = Some(attr::text(meta)?),
                    "unit" => metric.unit = Some(attr::text(meta)?),
                    "label" => metric.labels.extend(attr::const_labels(meta, errors)?),
                    "labels" => {
                        family_labels_at = Some(meta.path.clone());
                        metric.family_labels = attr::label_names(meta, errors)?;
                    }
                    "buckets" => metric.buckets = Some(meta.value()?.parse()?),
                    "native" => metric.native = Some(meta.value()?.parse()?),
                    "initial" => metric.initial = Some(meta.value()?.parse()?),
                    "series_max" => metric.series_max = Some(meta.value()?.parse()?),
                    "expire_after_secs" => metric.expire_after_secs = Some(meta.value()?.parse()?),
                    _ => {}
                }
                Ok(())
            },
        );

        let help = match help {
            Some(help) => Ok(help.value().trim().to_owned()),
            None => attr::doc_paragraphs(&field.attrs).map(|paragraphs| paragraphs.join(" ")),
        };
        match help {
            Ok(help) if help.is_empty() => errors.push(
                ident,
                format!("metric `{ident}` has no help: write a doc comment that says what it measures, or help = \"...\""),
            ),
            Ok(help) => metric.help = help,
            Err(error) => errors.add(error),
        }
        metric.check_name_and_unit(surroundings, errors);
        metric.check_labels(field, surroundings, family_labels_at.as_ref(), errors);
        metric.check_numbers(errors);
        metric
    }

    fn check_name_and_unit(&self, surroundings: &Surroundings, errors: &mut Errors) {
        let name = self.name.value();
        if let Err(why) = name::check_metric(&name) {
            errors.push(&self.name, why);
            return;
        }
        if let Some(unit) = &self.unit {
            let prefix = surroundings
                .prefix
                .as_ref()
                .map(LitStr::value)
                .unwrap_or_default();
            if let Err(why) = name::check_unit(&format!("{prefix}{name}"), &unit.value()) {
                errors.push(unit, why);
            }
        }
    }

    fn check_labels(
        &self,
        field: &syn::Field,
        surroundings: &Surroundings,
        labels_at: Option<&Path>,
        errors: &mut Errors,
    ) {
        match (self.shape, labels_at) {
            (Shape::Single(_), Some(at)) => errors.push(
                at,
                "only a Family has labels(...) whose values are given later; write Family<...>, or label(\"name\" = \"value\")",
            ),
            (Shape::Family { labels: None, .. }, None) => errors.push(
                &field.ty,
                "a Family has labels: add #[metric(labels(\"method\", \"code\"))], or a type that derives Labels, as in Family<Counter, Request>",
            ),
            (Shape::Family { labels: Some(labels), .. }, Some(at)) => errors.push(
                at,
                format!("the labels are those of `{}`; leave labels(...) out", labels.to_token_stream()),
            ),
            _ => {}
        }
        let own = self.labels.iter().map(|label| &label.name);
        let names: Vec<_> = own.chain(&self.family_labels).collect();
        attr::check_label_twice(&surroundings.label_names(), &names, errors);
    }

    fn check_numbers(&self, errors: &mut Errors) {
        let kind = match self.shape.kind() {
            Kind::Histogram => Some("Histogram"),
            Kind::Other("Gauge") | Kind::Unknown => None,
            Kind::Other(kind) => Some(kind),
        };
        if let (Some(initial), Some(kind)) = (&self.initial, kind) {
            errors.push(
                initial,
                format!("a {kind} has no initial value; only a Gauge has"),
            );
        }
        if let Kind::Other(kind) = self.shape.kind() {
            if let Some(buckets) = &self.buckets {
                errors.push(
                    buckets,
                    format!("a {kind} has no buckets; only a Histogram has"),
                );
            }
            if let Some(native) = &self.native {
                errors.push(
                    native,
                    format!("a {kind} can't be native; only a Histogram can"),
                );
            }
        }
        if let Some(elements) = self.buckets.as_ref().and_then(array) {
            let mut before: Option<f64> = None;
            for element in elements {
                let Some(bound) = errors.ok(number(element)).flatten() else {
                    before = None;
                    continue;
                };
                if let Some(before) = before.filter(|&before| before >= bound) {
                    errors.push(
                        element,
                        format!("bucket bounds must increase: {bound} follows {before}"),
                    );
                }
                before = Some(bound);
            }
        }
        let zero = |expr: &Expr| matches!(number(expr), Ok(Some(0.0)));
        if let Some(max) = self.series_max.as_ref().filter(|expr| zero(expr)) {
            errors.push(max, "a limit of 0 series leaves room for none; leave series_max out for the bus's own limit");
        }
        if let Some(secs) = &self.expire_after_secs {
            if let Shape::Single(_) = self.shape {
                errors.push(
                    secs,
                    "only the children of a Family expire; the struct keeps this metric for good",
                );
            } else if zero(secs) {
                errors.push(
                    secs,
                    "a child that expires after 0 seconds is never seen; give at least 1",
                );
            }
        }
    }

    /// The constant labels, for comparison.
    fn label_values(&self) -> Vec<(String, String)> {
        let mut values: Vec<_> = self
            .labels
            .iter()
            .map(|label| {
                (
                    label.name.value(),
                    label.value.to_token_stream().to_string(),
                )
            })
            .collect();
        values.sort();
        values
    }

    fn declaration(&self, scope: &Ident, ty: &Type, krate: &Path) -> TokenStream {
        let (name, help) = (&self.name, &self.help);
        let unit = self.unit.iter();
        let labels = self.labels.iter().map(|ConstLabel { name, value }| {
            quote!(.label(#name, ::std::string::ToString::to_string(&(#value))))
        });
        let family_labels = Some(&self.family_labels)
            .filter(|names| !names.is_empty())
            .into_iter();
        let family_labels = family_labels.map(|names| quote!(.labels([#(#names),*])));
        let buckets = self.buckets.iter().map(|buckets| match array(buckets) {
            None => quote!(.buckets(#buckets)),
            Some(elements) => {
                let elements = elements.into_iter().map(as_f64);
                quote!(.buckets(#krate::Buckets::from_static(const { &[#(#elements),*] })))
            }
        });
        let native = self.native.iter();
        let initial = self.initial.iter().map(as_f64);
        let series_max = self.series_max.iter();
        let expire = self.expire_after_secs.iter();
        let desc = quote! {
            #krate::Desc::new(#name, #help)
                #(.unit(#unit))*
                #(#labels)*
                #(#family_labels)*
                #(#buckets)*
                #(.native(#native))*
                #(.initial(#initial))*
                #(.series_max(#series_max))*
                #(.expire_after(::core::time::Duration::from_secs(#expire)))*
        };
        // Located at the type, so that one that merely looks like ours is shown there.
        let span = Span::call_site().located_at(ty.span());
        match self.shape {
            Shape::Single(_) => quote_spanned!(span=> #scope.declare::<#ty>(#desc)?),
            Shape::Family {
                metric,
                labels: None,
                ..
            } => quote_spanned!(span=> #scope.family::<#metric>(#desc)?),
            Shape::Family {
                metric,
                labels: Some(labels),
                ..
            } => {
                quote_spanned!(span=> #scope.family_of::<#metric, #labels>(#desc)?)
            }
        }
    }
}

/// The elements of an array literal.
fn array(expr: &Expr) -> Option<Vec<&Expr>> {
    match expr {
        Expr::Array(array) => Some(array.elems.iter().collect()),
        Expr::Reference(reference) => array(&reference.expr),
        Expr::Paren(paren) => array(&paren.expr),
        Expr::Group(group) => array(&group.expr),
        _ => None,
    }
}

/// The value of a literal number, `None` for any other expression.
fn number(expr: &Expr) -> Result<Option<f64>> {
    let value: f64 = match expr {
        Expr::Group(group) => return number(&group.expr),
        Expr::Unary(unary) if matches!(unary.op, UnOp::Neg(_)) => {
            return Ok(number(&unary.expr)?.map(|value| -value));
        }
        Expr::Lit(ExprLit {
            lit: Lit::Float(float),
            ..
        }) => float.base10_parse()?,
        Expr::Lit(ExprLit {
            lit: Lit::Int(int), ..
        }) => int.base10_parse()?,
        Expr::Lit(_) => return Err(Error::new_spanned(expr, "expected a number")),
        _ => return Ok(None),
    };
    if value.is_finite() {
        Ok(Some(value))
    } else {
        Err(Error::new_spanned(
            expr,
            "the number is too large for an f64",
        ))
    }
}

/// An element of an array of bounds, where a whole number may be written without a point.
fn as_f64(expr: &Expr) -> TokenStream {
    let Ok(Some(value)) = number(expr) else {
        return expr.to_token_stream();
    };
    let sign = value.is_sign_negative().then(|| quote!(-));
    let positive = value.abs();
    quote!(#sign #positive)
}

// What is refused, and where, is in the crate `compile-fail`; what the expansion does, in the library's tests.
#[cfg(test)]
mod tests {
    use super::*;

    fn errors(input: DeriveInput) -> Vec<String> {
        match Component::read(&input, &mut parse_quote!(::metricbus)) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.into_iter().map(|error| error.to_string()).collect(),
        }
    }

    #[test]
    fn a_family_of_nothing_is_refused() {
        let errors = errors(parse_quote! {
            struct Worker {
                /// Requests.
                #[metric(labels("method"))]
                requests: Family,
            }
        });
        assert_eq!(errors, ["say of what the family is, as in Family<Counter>"]);
    }

    #[test]
    fn types_are_known_by_the_last_segment_of_their_path() {
        let errors = errors(parse_quote! {
            struct Worker<M> {
                /// Requests.
                requests: ::metricbus::Counter<f64>,
                /// Latencies.
                #[metric(labels("method"), buckets = [1])]
                latency: (metricbus::Family<metricbus::Histogram>),
                /// By a parameter, whose buckets can't be judged.
                #[metric(buckets = [1])]
                metric: M,
            }
        });
        assert_eq!(errors, [""; 0]);
    }

    #[test]
    fn a_prefix_counts_when_the_unit_is_looked_for() {
        let unit = |prefix: &str, name: &str| {
            errors(parse_quote! {
                #[metrics(prefix = #prefix)]
                struct Worker {
                    /// Waits.
                    #[metric(name = #name, unit = "wait_seconds")]
                    wait: Gauge,
                }
            })
        };
        assert_eq!(unit("queue_wait_", "seconds"), [""; 0]);
        assert_eq!(unit("", "seconds"), [""; 0], "a scope could add the rest");
        assert_eq!(unit("queue_", "seconds").len(), 1);
    }

    #[test]
    fn every_mistake_of_a_struct_is_told_at_once_and_the_trait_is_implemented_all_the_same() {
        let input: DeriveInput = parse_quote! {
            #[metrics(prefix = "a\"b")]
            struct Worker {
                no_help: Counter,
                /// Help.
                other: u64,
                #[metrics(nested, help = "None.")]
                inner: Inner,
            }
        };
        let expansion = expand(&input).to_string();
        assert_eq!(expansion.matches("compile_error").count(), 4, "{expansion}");
        assert!(
            expansion.contains("metricbus :: Metrics for Worker"),
            "{expansion}"
        );
    }
}
