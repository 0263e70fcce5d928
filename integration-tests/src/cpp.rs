//! C and C++ code: compiled by the machine's own compilers against our header, and run plainly, under AddressSanitizer and
//! UndefinedBehaviorSanitizer, or under valgrind.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::parts::{checkout, on_path};

/// What looks over a program's shoulder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Under {
    /// Nothing.
    Nothing,
    /// AddressSanitizer, with LeakSanitizer, and UndefinedBehaviorSanitizer, in what was compiled by [`Workshop`]; of Rust's
    /// memory they see what it allocates and frees.
    Sanitizers,
    /// valgrind's memcheck, in everything. Memory that is lost is an error.
    Valgrind,
}

impl Under {
    /// All three.
    pub const ALL: [Under; 3] = [Under::Nothing, Under::Sanitizers, Under::Valgrind];
}

/// A folder in which things are built.
#[derive(Debug)]
pub struct Workshop {
    folder: TempDir,
    under: Under,
    gcc: PathBuf,
    gxx: PathBuf,
    valgrind: Option<PathBuf>,
}

impl Workshop {
    /// `None` where a program that is needed is missing.
    pub fn new(under: Under) -> Option<Workshop> {
        let package = "a C or C++ compiler";
        Some(Workshop {
            folder: tempfile::tempdir().unwrap_or_else(|why| panic!("no folder: {why}")),
            under,
            gcc: on_path("gcc", package)?,
            gxx: on_path("g++", package)?,
            valgrind: match under {
                Under::Valgrind => Some(on_path("valgrind", "valgrind")?),
                _ => None,
            },
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A program of one source, linked with the shared library.
    pub fn program(&self, source: &Path) -> PathBuf {
        let out = self.out(source, "");
        let library = library_folder();
        let mut link = self.compile(source, &out);
        link.arg("-L")
            .arg(&library)
            .arg("-lmetricbus_capi")
            .arg(format!("-Wl,-rpath,{}", library.display()))
            .arg("-pthread");
        succeed(&mut link);
        out
    }

    /// A program of one source, with the static library in it.
    pub fn static_program(&self, source: &Path) -> PathBuf {
        let out = self.out(source, "-static");
        let mut link = self.compile(source, &out);
        link.arg(library_folder().join("libmetricbus_capi.a"))
            .args(["-pthread", "-ldl", "-lm"]);
        succeed(&mut link);
        out
    }

    /// A shared library of one source, linked with nothing. `options` are the compiler's.
    pub fn library(&self, source: &Path, options: &[&str]) -> PathBuf {
        let how: String = options
            .concat()
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .take(40)
            .collect();
        let out = self.out(source, &format!("{how}.so"));
        let mut link = self.compile(source, &out);
        link.args(["-shared", "-fPIC", "-fvisibility=hidden"])
            .args(options);
        succeed(&mut link);
        out
    }

    /// What the compiler has against a source, which it doesn't take.
    pub fn complaints(&self, source: &Path) -> String {
        let mut compile = self.compile(source, &self.out(source, ".o"));
        let output = compile
            .arg("-c")
            .env("LC_ALL", "C")
            .output()
            .unwrap_or_else(|why| panic!("{compile:?} does not start: {why}"));
        assert!(!output.status.success(), "{source:?} was compiled");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Runs a program that this workshop has built, or one that loads a library of it.
    pub fn run(&self, program: &Path, arguments: &[&Path]) -> Output {
        let mut command = match &self.valgrind {
            None => Command::new(program),
            Some(valgrind) => {
                let mut command = Command::new(valgrind);
                command
                    .args(["--quiet", "--error-exitcode=99", "--leak-check=full"])
                    .args([
                        "--errors-for-leak-kinds=definite",
                        "--show-leak-kinds=definite",
                    ])
                    .arg(program);
                command
            }
        };
        command.args(arguments);
        if self.under == Under::Sanitizers {
            // A program of Rust has no sanitizer in it; what it loads wants one to be there first.
            if !program.starts_with(self.folder()) {
                command.env("LD_PRELOAD", self.sanitizer());
            }
            command.env("ASAN_OPTIONS", "detect_leaks=1:exitcode=98");
        }
        command
            // cargo's, which would lead to a library that was built some other time.
            .env_remove("LD_LIBRARY_PATH")
            .env("COUNTING_BACKEND_FILE", self.folder().join("counted"))
            .output()
            .unwrap_or_else(|why| panic!("{program:?} does not start: {why}"))
    }

    /// What it printed, if it ended well and nobody had a complaint.
    pub fn output(&self, program: &Path, arguments: &[&Path]) -> String {
        let output = self.run(program, arguments);
        assert!(
            output.status.success(),
            "{program:?} under {:?}: {}\n{}",
            self.under,
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn compile(&self, source: &Path, out: &Path) -> Command {
        let c = source.extension().is_some_and(|extension| extension == "c");
        let mut command = Command::new(if c { &self.gcc } else { &self.gxx });
        command
            .arg(if c { "-std=c11" } else { "-std=c++17" })
            .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g"])
            .arg("-I")
            .arg(checkout().join("capi/include"));
        if self.under == Under::Sanitizers {
            command.args([
                "-fsanitize=address,undefined",
                "-fno-sanitize-recover=all",
                "-fno-omit-frame-pointer",
            ]);
        }
        command.arg("-o").arg(out).arg(source);
        command
    }

    fn out(&self, source: &Path, ending: &str) -> PathBuf {
        let name = source.file_name().unwrap_or_default().to_string_lossy();
        self.folder()
            .join(format!("{}{ending}", name.replace('.', "-")))
    }

    /// Where the compiler has its AddressSanitizer.
    fn sanitizer(&self) -> PathBuf {
        let output = succeed(Command::new(&self.gcc).arg("-print-file-name=libasan.so"));
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
    }
}

/// A source of `integration-tests/cpp`.
pub fn source(name: &str) -> PathBuf {
    checkout().join("integration-tests/cpp").join(name)
}

/// A source of `capi/examples`.
pub fn example(name: &str) -> PathBuf {
    checkout().join("capi/examples").join(name)
}

/// Where cargo has put the library that this test depends on: beside the test.
pub fn library_folder() -> PathBuf {
    let test = env::current_exe().unwrap_or_else(|why| panic!("no path of the test: {why}"));
    let folder = test.parent().unwrap_or(Path::new("."));
    [folder.to_owned(), folder.join("deps")]
        .into_iter()
        .find(|folder| folder.join("libmetricbus_capi.so").is_file())
        .unwrap_or_else(|| panic!("no libmetricbus_capi.so in {folder:?}"))
}

fn succeed(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|why| panic!("{command:?} does not start: {why}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
