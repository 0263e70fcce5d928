//! Libraries in C and C++ that are backends: loaded, told of each mutation, asked for what they counted.

use std::{fs, time::Duration};

use metricbus::{
    LibnvContainer, MetricContainer,
    backend::{Backend, BackendError},
    component::Backends,
};
use metricbus_integration_tests::cpp::{Under, Workshop, example, source};

const DEADLINE: Duration = Duration::from_secs(10);

fn plain() -> Option<Workshop> {
    Workshop::new(Under::Nothing)
}

/// The library in plain C, broken in one way.
fn broken(workshop: &Workshop, how: &str) -> Result<LibnvContainer, BackendError> {
    let options = [&*format!("-D{how}"), "-Wno-unused-function"];
    let library = workshop.library(&source("broken.c"), &options);
    LibnvContainer::load(library, "tests", "tests")
}

#[test]
fn what_is_counted_here_is_counted_there() {
    for under in Under::ALL {
        let Some(workshop) = Workshop::new(under) else {
            return;
        };
        let library = workshop.library(&example("backend.cpp"), &[]);
        let program = env!("CARGO_BIN_EXE_libnv-host");
        let output = workshop.output(program.as_ref(), &[&library]);
        assert_eq!(
            output, "jobs 4000\ndepth 3.5\nsize 3 55.5\nrequests 7\nfailed 0\ndepth 3.5\n",
            "{under:?}"
        );
        // What the library itself has written, when it was shut down.
        let counted = fs::read_to_string(workshop.folder().join("counted")).unwrap();
        assert_eq!(
            counted,
            "service host\n\
             host_jobs_total{queue=\"fast\"} 4000\n\
             host_depth 3.5\n\
             host_size sum=55.5 1 1 1\n\
             host_requests_total{code=\"200\"} 7\n",
            "{under:?}"
        );
    }
}

#[test]
fn a_library_in_plain_c_that_has_nothing_to_keep_is_a_backend_too() {
    for under in Under::ALL {
        let Some(workshop) = Workshop::new(under) else {
            return;
        };
        let library = workshop.library(&source("broken.c"), &[]);
        let program = env!("CARGO_BIN_EXE_libnv-host");
        let output = workshop.output(program.as_ref(), &[&library]);
        assert!(
            output.starts_with("jobs 4000\ndepth 3.5\n"),
            "{under:?}: {output}"
        );
    }
}

#[test]
fn the_environment_may_name_the_library() {
    let Some(workshop) = plain() else {
        return;
    };
    let library = workshop.library(&source("broken.c"), &[]);
    let library = library.display().to_string();
    for (backend, path) in [
        (format!("libnv:{library}"), None),
        ("libnv".to_owned(), Some(library.clone())),
        (format!("tee:prometheus,libnv:{library}"), None),
    ] {
        let base = Backends::new()
            .from_vars(|name| match name {
                "METRICBUS_BACKEND" => Some(backend.clone()),
                "METRICBUS_LIBNV" => path.clone(),
                "METRICBUS_PREFIX" => Some("tests".to_owned()),
                _ => None,
            })
            .unwrap();
        let jobs = base
            .container
            .create_counter("jobs_total", "Jobs.", &[])
            .unwrap();
        jobs.inc_by(3);
        assert_eq!(jobs.get_value(), 3);
        assert!(
            base.container
                .export_prometheus()
                .ends_with("\ntests_jobs_total 3\n")
        );
    }
}

#[test]
fn each_way_to_be_no_backend_has_its_own_words() {
    let Some(workshop) = plain() else {
        return;
    };
    for (how, words) in [
        ("NO_SYMBOL", "exports no function \"metricbus_backend\""),
        (
            "NO_TABLE",
            "its metricbus_backend() returned NULL instead of a table",
        ),
        (
            "MAJOR=2",
            "it was built for version 2.0 of metricbus's C interface, and this program has version 1.0",
        ),
        ("SHORT", "set size to sizeof(mb_backend_table)"),
        (
            "NO_INC",
            "its table has NULL for inc, which a backend can't do without",
        ),
        (
            "INIT_FAILS",
            "library \"plain\" failed in init (4): the licence has run out",
        ),
        ("UNRESOLVED", "can't be loaded: "),
    ] {
        let error = broken(&workshop, how).unwrap_err().to_string();
        assert!(error.contains(words), "{how}: {error}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_library_that_is_refused_stays_loaded_since_its_threads_may_be_running() {
    let Some(workshop) = plain() else {
        return;
    };
    for how in ["NO_SYMBOL", "NO_TABLE", "MAJOR=2", "NO_INC", "INIT_FAILS"] {
        let options = [&*format!("-D{how}"), "-Wno-unused-function"];
        let library = workshop.library(&source("broken.c"), &options);
        let path = library.to_str().unwrap();
        LibnvContainer::load(&library, "tests", "tests").unwrap_err();
        let mapped = fs::read_to_string("/proc/self/maps").unwrap();
        assert!(mapped.contains(path), "{how}");
    }
}

#[test]
fn libraries_whose_classes_have_the_same_name_are_told_apart() {
    let Some(workshop) = plain() else {
        return;
    };
    let [one, two] = ["one", "two"].map(|name| {
        // As whoever forgets to hide what it does not export.
        let options = ["-fvisibility=default", &*format!("-DNAME=\"{name}\"")];
        let library = workshop.library(&source("twin.cpp"), &options);
        LibnvContainer::load(library, "tests", "").unwrap()
    });
    for (container, name) in [(one, "one"), (two, "two")] {
        assert_eq!(container.backend().library(), name);
        let error = container.create_gauge("depth", "", &[]).unwrap_err();
        let words = format!("library {name:?} failed in declare (1): {name} takes nothing");
        assert!(error.to_string().ends_with(&words), "{error}");
    }
}

#[test]
fn what_the_library_refuses_is_an_error_with_its_words() {
    let Some(workshop) = plain() else {
        return;
    };
    let container = broken(&workshop, "DECLARE_FAILS").unwrap();
    let error = container.create_gauge("depth", "Depth.", &[]).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("library \"plain\" failed in declare (5): the licence has run out"),
        "{error}"
    );
}

#[test]
fn mutations_that_fail_there_have_happened_here() {
    let Some(workshop) = plain() else {
        return;
    };
    let container = broken(&workshop, "CALLS_FAIL").unwrap();
    let jobs = container
        .create_counter("jobs_total", "Jobs.", &[])
        .unwrap();
    for _ in 0..10 {
        jobs.inc();
    }
    assert_eq!(container.backend().failed_calls(), 10);
    // What it can't say is what the bus has.
    assert_eq!(jobs.get_value(), 10);
    assert!(
        container
            .export_prometheus()
            .ends_with("\ntests_jobs_total 10\n")
    );
}

#[test]
fn what_cpp_throws_becomes_an_error_and_crosses_no_border() {
    let Some(workshop) = plain() else {
        return;
    };
    let library = workshop.library(&source("throwing.cpp"), &[]);
    let error = LibnvContainer::load(&library, "throws", "").unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("failed in init (1): the constructor has thrown"),
        "{error}"
    );

    let container = LibnvContainer::load(&library, "tests", "").unwrap();
    assert_eq!(container.backend().name(), "libnv");
    assert_eq!(container.backend().library(), "throwing");
    for (name, words) in [
        ("thrown_total", "declare has thrown"),
        ("nothing_total", "declare returned nothing"),
    ] {
        let error = container.create_counter(name, "", &[]).unwrap_err();
        assert!(error.to_string().ends_with(words), "{error}");
    }
    container
        .create_counter("jobs_total", "", &[])
        .unwrap()
        .inc();
    container.create_gauge("depth", "", &[]).unwrap().set(1.0);
    assert_eq!(container.backend().failed_calls(), 2);
    let error = container.flush(DEADLINE).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("failed in flush (1): flush has thrown"),
        "{error}"
    );
}

#[test]
fn one_library_may_be_several_backends() {
    let Some(workshop) = plain() else {
        return;
    };
    let library = workshop.library(&example("backend.cpp"), &[]);
    let one = LibnvContainer::load(&library, "one", "").unwrap();
    let two = LibnvContainer::load(&library, "two", "").unwrap();
    let (a, b) = (
        one.create_counter("jobs_total", "", &[]).unwrap(),
        two.create_counter("jobs_total", "", &[]).unwrap(),
    );
    a.inc_by(2);
    b.inc_by(5);
    drop(one);
    assert_eq!((a.get_value(), b.get_value()), (2, 5));
}
