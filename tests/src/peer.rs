//! A process of its own that does, step by step, what the test tells it: Debian's Python with the extension loaded.
//!
//! The test sends a piece of Python and gets back what its last expression is, or the exception that it ended with, so two
//! processes can be brought into any order without a sleep. In it, `database(name, more)` opens one of the host's databases, and
//! `one(connection, sql)` is the first value of the first row. A peer is killed when it is dropped, unless it was ended before.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::Host;
use crate::shell::Program;

/// How long one step may take.
const LIMIT: Duration = Duration::from_secs(90);

/// What a step can use.
const WORDS: &str = r#"
import ast, json, os, time
def one(db, sql, *values):
    row = db.execute(sql, values).fetchone()
    return None if row is None else row[0]
def status(db):
    return json.loads(one(db, 'PRAGMA gcs_status'))
_names = globals()
_out = os.fdopen(os.dup(1), 'w')
def told(what):
    print('told', what, file=_out, flush=True)
"#;

/// Reads a line, a piece of Python as a JSON text, runs it, and answers with one line.
const LOOP: &str = r#"
for _line in sys.stdin:
    try:
        _tree = ast.parse(json.loads(_line))
        _last = _tree.body.pop() if _tree.body and isinstance(_tree.body[-1], ast.Expr) else None
        exec(compile(_tree, 'step', 'exec'), _names)
        _value = eval(compile(ast.Expression(_last.value), 'step', 'eval'), _names) if _last else None
        print('ok', json.dumps(str(_value)), file=_out, flush=True)
    except Exception as error:
        _code = getattr(error, 'sqlite_errorname', '')
        print('error', json.dumps(f'{type(error).__name__}: {error} {_code}'), file=_out, flush=True)
"#;

/// Another process.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    answers: Receiver<String>,
    errors: Option<thread::JoinHandle<String>>,
    /// What the running step has told so far.
    told: Vec<String>,
}

impl Peer {
    /// Starts one beside a host's databases. `setup` is run first.
    pub fn start(host: &Host, setup: &str) -> Peer {
        Peer::start_with(host, setup, |program| program)
    }

    /// The same with a tmpfs of so many bytes (`size=` of mount) in place of a folder, for this process alone.
    pub fn start_with_tmpfs(host: &Host, setup: &str, folder: &Path, size: &str) -> Peer {
        Peer::start_with(host, setup, |python| {
            let python = python.into_command();
            let script = format!("mount -t tmpfs -o size={size} tmpfs {} && exec \"$@\"", folder.display());
            // As root in a mount namespace of its own; others get there through a user namespace.
            let user: &[&str] = if is_root() { &[] } else { &["--map-root-user"] };
            let mut program =
                Program::new("unshare").args(["--mount"]).args(user).args(["sh", "-c", script.as_str(), "sh"]);
            program = program.args([python.get_program()]).args(python.get_args());
            for (name, value) in python.get_envs() {
                if let (Some(name), Some(value)) = (name.to_str(), value) {
                    program = program.env(name, value);
                }
            }
            program
        })
    }

    /// The same with more settings of the process.
    pub fn start_with(host: &Host, setup: &str, settings: impl FnOnce(Program) -> Program) -> Peer {
        let connect = format!(
            "_path = {:?}\ndef database(name, more='', **settings):\n    \
             return connect('file:' + _path + '/' + name + '?vfs=gcs' + more, isolation_level=None, **{{'timeout': 60, **settings}})\n",
            host.path("").display().to_string().trim_end_matches('/')
        );
        let program =
            Program::python(&format!("{WORDS}{connect}{setup}\n{LOOP}")).env("SQLITE_GCS_BUCKET", host.bucket());
        let mut child = settings(program).into_command().spawn().expect("python");
        let input = child.stdin.take();
        let output = child.stdout.take().expect("a pipe");
        let mut errors = child.stderr.take().expect("a pipe");
        let (send, answers) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let errors = thread::spawn(move || {
            let mut text = Vec::new();
            // What was read before a failure is as good as it gets.
            let _ = errors.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Peer { child, input, answers, errors: Some(errors), told: Vec::new() }
    }

    /// Begins a step; its end is waited for by [`Peer::answer`].
    #[track_caller]
    pub fn begin(&mut self, code: &str) {
        self.told.clear();
        let line = serde_json::to_string(code).expect("a text");
        let input = self.input.as_mut().expect("a running peer");
        writeln!(input, "{line}").and_then(|()| input.flush()).expect("a peer that listens");
    }

    /// Waits for the end of the step: its value, or the text of its exception.
    ///
    /// # Panics
    /// If the process ended or the step takes longer than a minute and a half.
    #[track_caller]
    pub fn answer(&mut self) -> Result<String, String> {
        self.answer_within(LIMIT)
    }

    /// The same for a step that may take longer.
    #[track_caller]
    pub fn answer_within(&mut self, limit: Duration) -> Result<String, String> {
        loop {
            let line = match self.answers.recv_timeout(limit) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => panic!("no answer within {} s", limit.as_secs()),
                Err(RecvTimeoutError::Disconnected) => panic!("the peer ended: {}", self.end_text()),
            };
            match line.split_once(' ') {
                Some(("told", what)) => self.told.push(what.to_owned()),
                Some(("ok", text)) => return Ok(serde_json::from_str(text).expect("a text")),
                Some((_, text)) => return Err(serde_json::from_str(text).unwrap_or_else(|_| text.to_owned())),
                None => panic!("{line}"),
            }
        }
    }

    /// Waits until the running step tells something (`told(...)` in Python).
    #[track_caller]
    pub fn wait_for_told(&mut self) -> String {
        let line = self.answers.recv_timeout(LIMIT).expect("the step tells something");
        let Some(what) = line.strip_prefix("told ").map(str::to_owned) else {
            self.kill_now();
            panic!("the step ended: {line}\n{}", self.end_text());
        };
        self.told.push(what.clone());
        what
    }

    /// Runs a step and returns its value. If it fails, the test fails with what the process logged.
    #[track_caller]
    pub fn run(&mut self, code: &str) -> String {
        self.begin(code);
        match self.answer() {
            Ok(value) => value,
            Err(error) => {
                self.kill_now();
                panic!("{code}: {error}\n{}", self.end_text())
            }
        }
    }

    /// Runs a step that has to fail, and returns its exception.
    #[track_caller]
    pub fn fail(&mut self, code: &str) -> String {
        self.begin(code);
        match self.answer() {
            Ok(value) => panic!("{code}: {value}"),
            Err(error) => error,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Kills it, as a power cut ends a process, and returns everything that the running step had told.
    pub fn kill(mut self) -> Vec<String> {
        self.kill_now();
        // The pipe holds what was written before.
        let rest: Vec<_> = self.answers.iter().collect();
        let mut told = std::mem::take(&mut self.told);
        told.extend(rest.iter().filter_map(|line| line.strip_prefix("told ")).map(str::to_owned));
        told
    }

    /// Sends a signal to it alone.
    pub fn signal(&self, signal: Signal) {
        // It may have ended by itself just now.
        let _ = kill(self.pid(), signal);
    }

    /// Ends it in good order (its input ends) and returns what it wrote to its standard error.
    ///
    /// # Panics
    /// If it does not end with code 0.
    #[track_caller]
    pub fn end(mut self) -> String {
        drop(self.input.take());
        // Its output ends with it.
        let begun = std::time::Instant::now();
        loop {
            match self.answers.recv_timeout(LIMIT.saturating_sub(begun.elapsed())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    self.kill_now();
                    panic!("the peer does not end: {}", self.end_text());
                }
            }
        }
        let status = self.child.wait().expect("its end");
        let text = self.end_text();
        assert!(status.success(), "{status}: {text}");
        text
    }

    /// What it wrote to its standard error, once it has ended.
    pub fn errors_of_killed(mut self) -> String {
        self.kill_now();
        self.end_text()
    }

    fn kill_now(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn end_text(&mut self) -> String {
        self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default()
    }
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill_now();
    }
}
