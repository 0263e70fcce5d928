//! Goal: a mistake in a struct of metrics is an error where the mistake is, with what would be right.
//! Method: trybuild compiles each file of `ui/` and compares the compiler's errors with the `.stderr` file beside it.
//! A file holds as many mistakes as the compiler reports in one run. After a wanted change of a message, or with
//! another compiler, `TRYBUILD=overwrite cargo test -p metricbus-compile-fail` writes them anew.

fn refuses(file: &str) {
    trybuild::TestCases::new().compile_fail(format!("tests/ui/{file}.rs"));
}

#[test]
fn only_structs_with_named_fields_are_derived_for() {
    refuses("shape");
}

#[test]
fn a_field_whose_type_is_no_metric_or_does_not_fit_its_attributes_is_refused() {
    refuses("types");
}

#[test]
fn names_that_metrics_labels_and_units_cannot_have_are_refused() {
    refuses("names");
}

#[test]
fn attributes_that_are_unknown_twice_or_misplaced_are_refused_with_the_right_ones() {
    refuses("attributes");
}

#[test]
fn numbers_that_the_bus_would_refuse_are_refused_before() {
    refuses("numbers");
}

#[test]
fn labels_are_checked_where_they_are_defined() {
    refuses("labels");
}

#[test]
fn a_type_that_lacks_a_trait_is_shown_at_its_field() {
    refuses("traits");
}
