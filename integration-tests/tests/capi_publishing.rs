//! C and C++ programs that publish into a bus and listen to it.

use std::process::Command;

use metricbus_integration_tests::{
    cpp::{Under, Workshop, example, library_folder, source},
    parts::on_path,
};

const TEXT: &str = "\
# HELP kv_usage_ratio Share of KV blocks in use.
# TYPE kv_usage_ratio gauge
kv_usage_ratio{worker=\"7\"} 0.5
# HELP requests_total Requests served.
# TYPE requests_total counter
requests_total{method=\"generate\"} 100
";

#[test]
fn the_example_in_c_does_what_it_shows() {
    for under in Under::ALL {
        let Some(workshop) = Workshop::new(under) else {
            return;
        };
        let output = workshop.output(&workshop.program(&example("publisher.c")), &[]);
        for wanted in [
            "kv_usage_ratio{worker=\"7\"} raised at 0.95\nkv_usage_ratio{worker=\"7\"} cleared at 0.5\n",
            "increase in 10 s: 100\n",
            TEXT,
            "refused: metric \"requests_total\" clashes with its earlier declaration",
        ] {
            assert!(output.contains(wanted), "{under:?}: {output}");
        }
    }
}

#[test]
fn the_example_in_cpp_does_what_it_shows() {
    for under in Under::ALL {
        let Some(workshop) = Workshop::new(under) else {
            return;
        };
        let output = workshop.output(&workshop.program(&example("publisher.cpp")), &[]);
        for wanted in [
            "engine_kv_usage_ratio{worker=\"7\"} raised at 0.95\n",
            "engine_kv_usage_ratio{worker=\"7\"} cleared at 0.5\n",
            "p99 of the time to the first token: 0.9",
            "engine_requests_total{worker=\"7\",method=\"generate\"} 100\n",
            "engine_ttft_seconds_count{worker=\"7\"} 100\n",
            "refused: metric \"engine_requests_total\" clashes with its earlier declaration",
        ] {
            assert!(output.contains(wanted), "{under:?}: {output}");
        }
    }
}

#[test]
fn the_examples_are_built_by_their_makefile() {
    let Some(workshop) = Workshop::new(Under::Nothing) else {
        return;
    };
    let Some(make) = on_path("make", "make") else {
        return;
    };
    let output = Command::new(make)
        .args(["--silent", "--directory"])
        .arg(example(""))
        .arg(format!("LIB={}", library_folder().display()))
        .arg(format!("OUT={}", workshop.folder().display()))
        .args(["CFLAGS=", "CXXFLAGS=", "run"])
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(workshop.folder().join("libcounting.so").is_file());
    let output = String::from_utf8_lossy(&output.stdout);
    assert!(output.contains(TEXT), "{output}");
}

#[test]
fn a_program_with_the_static_library_in_it_works_alike() {
    let Some(workshop) = Workshop::new(Under::Nothing) else {
        return;
    };
    let output = workshop.output(&workshop.static_program(&example("publisher.c")), &[]);
    assert!(output.contains(TEXT), "{output}");
}

#[test]
fn what_a_c_program_does_wrong_is_an_error_and_harms_nothing() {
    for under in Under::ALL {
        let Some(workshop) = Workshop::new(under) else {
            return;
        };
        let output = workshop.output(&workshop.program(&source("abuse.c")), &[]);
        assert_eq!(output, "", "{under:?}");
    }
}

#[test]
fn scrapers_that_close_at_once_do_not_end_a_c_program() {
    let Some(workshop) = Workshop::new(Under::Nothing) else {
        return;
    };
    let output = workshop.output(&workshop.program(&source("hasty.c")), &[]);
    assert_eq!(output, "served\n");
}

#[test]
fn a_forked_child_can_have_a_bus_of_its_own() {
    let Some(workshop) = Workshop::new(Under::Nothing) else {
        return;
    };
    let output = workshop.output(&workshop.program(&source("forked.c")), &[]);
    assert_eq!(output, "forked\n");
}

#[test]
fn a_forgotten_subscription_leaves_nothing_behind() {
    for under in [Under::Sanitizers, Under::Valgrind] {
        let Some(workshop) = Workshop::new(under) else {
            return;
        };
        let output = workshop.output(&workshop.program(&source("forgotten.c")), &[]);
        assert_eq!(output, "", "{under:?}");
    }
}

#[test]
fn the_cpp_wrapper_keeps_what_it_promises() {
    wrapper(Under::Nothing);
}

#[test]
fn the_cpp_wrapper_keeps_what_it_promises_under_sanitizers() {
    wrapper(Under::Sanitizers);
}

#[test]
fn the_cpp_wrapper_keeps_what_it_promises_under_valgrind() {
    wrapper(Under::Valgrind);
}

fn wrapper(under: Under) {
    if let Some(workshop) = Workshop::new(under) {
        let output = workshop.output(&workshop.program(&source("wrapper.cpp")), &[]);
        assert_eq!(output, "");
    }
}

#[test]
fn what_ends_with_its_object_is_not_dropped_unseen() {
    let Some(workshop) = Workshop::new(Under::Nothing) else {
        return;
    };
    let complaints = workshop.complaints(&source("dropped.cpp"));
    for (class, times) in [("subscription", 3), ("window", 1), ("server", 1)] {
        let words = format!("ignoring returned value of type 'metricbus::{class}'");
        let seen = complaints.lines().filter(|line| line.contains(&words));
        assert_eq!(
            seen.filter(|line| line.contains("nodiscard")).count(),
            times,
            "{class}: {complaints}"
        );
    }
    assert_eq!(complaints.matches(" error: ").count(), 5, "{complaints}");
}

#[test]
fn the_guards_of_these_tests_see_what_is_lost() {
    for under in [Under::Sanitizers, Under::Valgrind] {
        let Some(workshop) = Workshop::new(under) else {
            return;
        };
        let output = workshop.run(&workshop.program(&source("leaky.c")), &[]);
        assert!(!output.status.success(), "{under:?} has seen nothing");
    }
}

#[test]
fn a_rust_program_and_the_cpp_code_it_loads_are_on_one_bus() {
    let Some(workshop) = Workshop::new(Under::Nothing) else {
        return;
    };
    let engine = workshop.library(&source("engine.cpp"), &[]);
    let program = env!("CARGO_BIN_EXE_share-bus");
    let output = workshop.output(program.as_ref(), &[&engine]);
    assert_eq!(output, "engine_usage_ratio Raised 0.95\n");
}

#[test]
fn cpp_code_with_another_copy_of_the_library_is_refused_the_bus() {
    let Some(workshop) = Workshop::new(Under::Nothing) else {
        return;
    };
    let archive = library_folder().join("libmetricbus_capi.a");
    // Its own functions rather than those of the program, which the loader would find first.
    let own = [
        "-Wl,-Bsymbolic,--exclude-libs,ALL",
        &archive.display().to_string(),
    ];
    let engine = workshop.library(&source("engine.cpp"), &own);
    let program = env!("CARGO_BIN_EXE_share-bus");
    let output = workshop.output(program.as_ref(), &[&engine]);
    assert_eq!(output, "refused 12\n");
}
