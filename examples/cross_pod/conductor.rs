//! The story: who is started, told and killed when, what should be seen of it, and what was.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    time::{sleep_until, timeout},
};

use crate::{
    Told,
    child::{Heard, Talker, What},
    server::{self, Failure, NatsServer},
    voice::{Fact, Transition, heard},
};

/// The programs, by the number they are started with.
const CAST: [&str; 4] = ["decode-0", "decode-1", "planner", "consumer"];
const BUSY: usize = 0;
const VICTIM: usize = 1;
const PLANNER: usize = 2;
const CONSUMER: usize = 3;

/// For anything that should be seen. Most of it takes milliseconds; on a busy machine, and with a server that comes
/// back, seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the server is down.
const OUTAGE: Duration = Duration::from_secs(3);

/// How many spikes there are meanwhile: each is two alerts.
const SPIKES: usize = 5;

/// Why the story ends before its end.
enum Stop {
    /// Ctrl-C, or asked to terminate.
    Interrupted,
    Failed(Failure),
}

impl<E: Into<Failure>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Failed(error.into())
    }
}

/// Tells the story. The code is 1 if anything was not seen, and 130 after Ctrl-C.
pub async fn run(url: Option<&str>, server: Option<&Path>) -> ExitCode {
    let mut story = Story::new();
    let outcome = story.tell(url, server).await;
    story.end().await;
    match outcome {
        Ok(()) if story.summary() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(Stop::Interrupted) => {
            eprintln!("cross_pod: interrupted; all it had started is ended");
            ExitCode::from(130)
        }
        Err(Stop::Failed(error)) => {
            eprintln!("cross_pod: {}", Told(&error));
            ExitCode::FAILURE
        }
    }
}

struct Story {
    screen: Screen,
    server: Option<NatsServer>,
    programs: [Option<Talker>; CAST.len()],
    sender: UnboundedSender<Heard>,
    heard: UnboundedReceiver<Heard>,
    interrupts: mpsc::Receiver<()>,
    facts: Vec<(usize, Fact)>,
    /// What should be seen, and how it was; `None`: it was not.
    seen: Vec<(String, Option<String>)>,
}

impl Story {
    fn new() -> Story {
        let (sender, heard) = mpsc::unbounded_channel();
        let (interrupt, interrupts) = mpsc::channel(1);
        tokio::spawn(async move {
            asked_to_end().await;
            let _ = interrupt.send(()).await;
        });
        Story {
            screen: Screen::new(),
            server: None,
            programs: Default::default(),
            sender,
            heard,
            interrupts,
            facts: Vec::new(),
            seen: Vec::new(),
        }
    }

    async fn tell(&mut self, url: Option<&str>, server: Option<&Path>) -> Result<(), Stop> {
        let url = self.server(url, server)?;
        self.programs_start(&url).await?;
        self.burst().await?;
        self.window().await?;
        self.rule_through_kv().await?;
        self.worker_killed().await?;
        if self.server.is_some() {
            self.server_killed().await?;
        } else {
            self.screen.chapter(
                "The server is not killed",
                "It is not ours. Without --url this program starts one of its own, kills it and starts it again.",
            );
        }
        self.compare(PLANNER);
        self.compare(CONSUMER);
        Ok(())
    }

    fn server(&mut self, url: Option<&str>, server: Option<&Path>) -> Result<String, Stop> {
        if let Some(url) = url {
            self.screen
                .line(None, &format!("the NATS server is yours, {url}"));
            return Ok(url.to_owned());
        }
        let program = match server {
            Some(program) => program.to_owned(),
            None => server::find(Path::new(env!("CARGO_MANIFEST_DIR"))).map_err(|error| {
                format!("{error}; or give the URL of one that runs: --url nats://127.0.0.1:4222")
            })?,
        };
        let server = NatsServer::start(&program)?;
        let url = server.url();
        self.screen.line(
            None,
            &format!(
                "nats-server {} with JetStream is up on {url} (process {})",
                server::version(&program)?,
                server.id().unwrap_or_default(),
            ),
        );
        self.server = Some(server);
        Ok(url)
    }

    async fn programs_start(&mut self, url: &str) -> Result<(), Stop> {
        self.screen.chapter(
            "Two workers, a planner, a consumer",
            "Each is a process of its own; they share nothing but the NATS server. The planner is there last, and knows all the same.",
        );
        for who in [BUSY, VICTIM, CONSUMER, PLANNER] {
            let mut args = vec!["--conducted", "--url", url];
            match who {
                PLANNER => args.push("planner"),
                CONSUMER => args.push("consumer"),
                worker => args.extend(["worker", "--instance", CAST[worker]]),
            }
            self.programs[who] = Some(Talker::start(who, &args, &self.sender)?);
            self.until(|facts| facts.contains(&(who, Fact::Ready)))
                .await?;
        }
        let begin = Instant::now();
        let born = |facts: &[(usize, Fact)]| {
            [BUSY, VICTIM]
                .iter()
                .all(|who| facts.contains(&(PLANNER, Fact::Born(CAST[*who].into()))))
        };
        let known = self.until(born).await?;
        self.expected(
            "the planner, started last, knows both workers",
            known.then(|| format!("after {}", ms(begin.elapsed()))),
        );
        self.pause(1_000).await
    }

    async fn burst(&mut self) -> Result<(), Stop> {
        self.screen.chapter(
            "A burst at decode-0",
            "Its own rule fires in the very mutation that crosses 0.9. The consumer reads that as JSON; the planner hears it, and then has a rule \
             of its own fire: any worker full for 500 ms.",
        );
        self.tell_to(BUSY, "burst").await?;
        let heard = |who, firing| {
            move |facts: &[(usize, Fact)]| {
                facts.iter().any(|(by, fact)| {
                *by == who
                    && matches!(fact, Fact::Alert(t) if t.instance == CAST[BUSY] && t.firing == firing)
            })
            }
        };
        let consumer = self.until(heard(CONSUMER, true)).await?;
        self.expected(
            "the consumer reads that decode-0 is full",
            consumer.then(String::new),
        );
        let planner = self.until(heard(PLANNER, true)).await?;
        let delay = self.facts.iter().find_map(|(_, fact)| match fact {
            Fact::Delay(ms) => Some(*ms),
            _ => None,
        });
        self.expected(
            "the planner hears it",
            delay
                .filter(|_| planner)
                .map(|delay| format!("{delay:.1} ms after the crossing")),
        );
        let fired = self.until(|facts| fleet(facts, true).is_some()).await?;
        let after = fleet(&self.facts, true).flatten();
        self.expected(
            "the planner's rule over all workers fires",
            fired.then(|| match after {
                Some(after) => {
                    format!("{after:.1} ms after the crossing, 500 of which are its hold")
                }
                None => String::new(),
            }),
        );
        self.pause(1_200).await
    }

    async fn window(&mut self) -> Result<(), Stop> {
        self.screen.chapter(
            "The p99 of all workers",
            "Each worker keeps a window of 10 s over its own histogram. Merged, they give the quantile over all requests, not a mean of quantiles.",
        );
        self.tell_to(PLANNER, "p99").await?;
        let answer = |facts: &[(usize, Fact)]| {
            facts.iter().find_map(|(_, fact)| match fact {
                Fact::Window {
                    p99,
                    answered,
                    complete,
                } => Some((*p99, *answered, *complete)),
                _ => None,
            })
        };
        let answered = self.until(|facts| answer(facts).is_some()).await?;
        let whole = answer(&self.facts)
            .filter(|(p99, answered, complete)| p99.is_some() && *answered == 2 && *complete);
        self.expected(
            "both workers answer for a window",
            whole
                .filter(|_| answered)
                .and_then(|(p99, ..)| Some(format!("p99 {:.0} ms", p99? * 1e3))),
        );
        self.tell_to(BUSY, "calm").await?;
        let calm = self
            .until(|facts| {
                fleet(facts, false).is_some()
                    && [PLANNER, CONSUMER]
                        .iter()
                        .all(|who| alerts(facts, *who, BUSY).last().is_some_and(|t| !t.firing))
            })
            .await?;
        self.expected(
            "after the burst all three rules are resolved",
            calm.then(String::new),
        );
        self.pause(500).await
    }

    async fn rule_through_kv(&mut self) -> Result<(), Stop> {
        self.screen.chapter(
            "A rule is sent to the workers",
            "It goes through a KV bucket, and is then evaluated in each worker, with each mutation; only its transitions travel. Workers to come find it, too. \
             The first rule makes the bucket; a worker looks for one every 5 s, so one may have the rule seconds before the other.",
        );
        self.tell_to(PLANNER, "rule 40").await?;
        let in_force = (PLANNER, Fact::RuleInForce(2));
        let in_force = self.until(|facts| facts.contains(&in_force)).await?;
        self.expected(
            "a rule that was sent is in force at both workers",
            in_force.then(String::new),
        );
        self.tell_to(VICTIM, "burst").await?;
        let fires = |firing: bool| {
            move |facts: &[(usize, Fact)]| {
                [PLANNER, CONSUMER].iter().all(|who| {
                    let all = alerts(facts, *who, VICTIM);
                    let mut long = all.iter().filter(|t| t.rule == "QueueLong");
                    long.any(|t| t.firing == firing)
                })
            }
        };
        let fired = self.until(fires(true)).await?;
        self.expected(
            "it fires at decode-1, and the planner hears it",
            fired.then(String::new),
        );
        self.tell_to(VICTIM, "calm").await?;
        self.until(fires(false)).await?;
        // Before that worker is killed, all it said is heard.
        self.until(|facts| {
            [PLANNER, CONSUMER]
                .iter()
                .all(|who| alerts(facts, *who, VICTIM).len() >= alerts(facts, VICTIM, VICTIM).len())
        })
        .await?;
        self.pause(700).await
    }

    async fn worker_killed(&mut self) -> Result<(), Stop> {
        self.screen.chapter(
            "decode-1 is killed",
            "SIGKILL: it can't say goodbye. Its heartbeat of 1 s does not come; the planner asks the server whether it still listens.",
        );
        let begin = Instant::now();
        if let Some(mut victim) = self.programs[VICTIM].take() {
            victim.kill().await?;
        }
        let gone = (PLANNER, Fact::Gone(CAST[VICTIM].into()));
        let gone = self.until(|facts| facts.contains(&gone)).await?;
        self.expected(
            "the planner reports the killed worker as gone",
            gone.then(|| format!("after {}", ms(begin.elapsed()))),
        );
        self.tell_to(PLANNER, "pods").await?;
        self.pause(700).await
    }

    async fn server_killed(&mut self) -> Result<(), Stop> {
        self.screen.chapter(
            "The NATS server is killed, and comes back",
            "Meanwhile decode-0 has 5 spikes of 5 ms. Its mutations wait for nobody; the alerts wait in its outbox.",
        );
        if let Some(server) = &mut self.server {
            server.kill();
        }
        self.screen.line(None, "the server is dead (SIGKILL)");
        let down = Instant::now();
        self.pause(300).await?;
        let before = alerts(&self.facts, BUSY, BUSY).len();
        self.tell_to(BUSY, &format!("spikes {SPIKES}")).await?;
        let wanted = before + 2 * SPIKES;
        let made = self
            .until(|facts| alerts(facts, BUSY, BUSY).len() >= wanted)
            .await?;
        self.expected(
            "decode-0 goes on judging without a server",
            made.then(|| format!("{} alerts", 2 * SPIKES)),
        );
        self.tell_to(BUSY, "status").await?;
        let rest = OUTAGE.saturating_sub(down.elapsed());
        self.pause(rest.as_millis() as u64).await?;
        let down = down.elapsed();
        if let Some(server) = &mut self.server {
            server.restart()?;
        }
        let up = Instant::now();
        self.screen.line(
            None,
            &format!(
                "the server is back after {:.1} s, on the same port",
                down.as_secs_f64()
            ),
        );
        for (who, what) in [
            (PLANNER, "all of that reaches the planner"),
            (CONSUMER, "all of that reaches the consumer"),
        ] {
            let came = self
                .until(|facts| alerts(facts, who, BUSY).len() >= wanted)
                .await?;
            self.expected(
                what,
                came.then(|| format!("{} after the server was back", ms(up.elapsed()))),
            );
        }
        // A second time would come now.
        self.pause(1_000).await
    }

    /// What a program heard of each worker, with what that worker made.
    fn compare(&mut self, who: usize) {
        let mut differing = None;
        let mut count = 0;
        for worker in [BUSY, VICTIM] {
            let made = alerts(&self.facts, worker, worker);
            let heard = alerts(&self.facts, who, worker);
            count += heard.len();
            if made != heard {
                differing = Some(format!(
                    "{} made {} alerts, {} heard {}",
                    CAST[worker],
                    made.len(),
                    CAST[who],
                    heard.len()
                ));
            }
        }
        let what = format!("the {} has every alert exactly once, in order", CAST[who]);
        if let Some(differing) = &differing {
            self.screen.line(None, differing);
        }
        self.expected(
            &what,
            differing.is_none().then(|| format!("{count} alerts")),
        );
    }

    /// For the summary.
    fn expected(&mut self, what: &str, how: Option<String>) {
        if how.is_none() {
            self.screen.line(None, &format!("NOT SEEN: {what}"));
        }
        self.seen.push((what.to_owned(), how));
    }

    async fn tell_to(&mut self, who: usize, command: &str) -> Result<(), Stop> {
        self.screen
            .line(None, &format!("to {}: {command}", CAST[who]));
        if let Some(program) = &mut self.programs[who] {
            program.tell(command).await?;
        }
        Ok(())
    }

    /// Shows what is said until it is so, or patience ends. Whether it is so.
    async fn until(&mut self, so: impl Fn(&[(usize, Fact)]) -> bool) -> Result<bool, Stop> {
        self.listen(PATIENCE, so).await
    }

    /// Shows what is said, for a while.
    async fn pause(&mut self, ms: u64) -> Result<(), Stop> {
        self.listen(Duration::from_millis(ms), |_| false).await?;
        Ok(())
    }

    async fn listen(
        &mut self,
        most: Duration,
        so: impl Fn(&[(usize, Fact)]) -> bool,
    ) -> Result<bool, Stop> {
        let end = tokio::time::Instant::now() + most;
        while !so(&self.facts) {
            tokio::select! {
                Some(heard) = self.heard.recv() => self.take(heard)?,
                _ = self.interrupts.recv() => return Err(Stop::Interrupted),
                () = sleep_until(end) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn take(&mut self, Heard { who, what }: Heard) -> Result<(), Stop> {
        match what {
            What::Line(line) => match heard(line) {
                Ok(fact) => self.facts.push((who, fact)),
                Err(line) => self.screen.line(Some(who), &line),
            },
            // Unless it was killed, or told to end.
            What::End if self.programs[who].is_some() => {
                return Err(format!("{} has ended before its time", CAST[who]).into());
            }
            What::End => {}
        }
        Ok(())
    }

    /// Ends everything that was started.
    async fn end(&mut self) {
        // Rules outlive those who send them: this one was for the story.
        if let Some(planner) = &mut self.programs[PLANNER] {
            let _ = planner.tell("unrule").await;
        }
        let mut programs = std::mem::take(&mut self.programs);
        // Last things said are shown; nobody waits long for them.
        let ending = async {
            for program in programs.iter_mut().rev().flatten() {
                program.end().await;
            }
        };
        let _ = timeout(PATIENCE, ending).await;
        while let Ok(heard) = self.heard.try_recv() {
            let _ = self.take(heard);
        }
        self.server = None;
    }

    /// Whether everything was seen.
    fn summary(&self) -> bool {
        let all = self.seen.iter().all(|(_, how)| how.is_some());
        self.screen.chapter(
            if all {
                "Seen, all of it"
            } else {
                "Not all was seen"
            },
            &format!("in {:.0} s", self.screen.begin.elapsed().as_secs_f64()),
        );
        for (what, how) in &self.seen {
            let mark = if how.is_some() { "yes" } else { "NO" };
            self.screen.row(mark, what, how.as_deref().unwrap_or(""));
        }
        all
    }
}

/// What `who` made or heard of a worker's alerts, in order.
fn alerts(facts: &[(usize, Fact)], who: usize, worker: usize) -> Vec<&Transition> {
    facts
        .iter()
        .filter_map(|(by, fact)| match fact {
            Fact::Alert(t) if *by == who && t.instance == CAST[worker] => Some(t),
            _ => None,
        })
        .collect()
}

/// Whether the planner's own rule has fired, or resolved; and after how many milliseconds.
fn fleet(facts: &[(usize, Fact)], wanted: bool) -> Option<Option<f64>> {
    facts.iter().find_map(|(_, fact)| match fact {
        Fact::Fleet { firing, after } if *firing == wanted => Some(*after),
        _ => None,
    })
}

fn ms(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}

/// Ctrl-C, or SIGTERM where there is such a thing.
async fn asked_to_end() {
    #[cfg(unix)]
    if let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
    {
        tokio::select! {
            _ = term.recv() => return,
            Ok(()) = tokio::signal::ctrl_c() => return,
        }
    }
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What a person sees.
struct Screen {
    begin: Instant,
    coloured: bool,
}

impl Screen {
    fn new() -> Screen {
        Screen {
            begin: Instant::now(),
            // See no-color.org.
            coloured: io::stdout().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    /// A line of a program, or of the conductor itself.
    fn line(&self, who: Option<usize>, text: &str) {
        const COLOURS: [&str; CAST.len()] = ["32", "36", "33", "35"];
        let (name, colour) = match who {
            Some(who) => (CAST[who], COLOURS[who]),
            None => ("conductor", "2"),
        };
        let name = self.paint(colour, &format!("{name:<9}"));
        self.write(&format!(
            "{:6.2} s  {name}  {text}",
            self.begin.elapsed().as_secs_f64()
        ));
    }

    fn chapter(&self, title: &str, text: &str) {
        self.write("");
        self.write(&self.paint("1", title));
        for line in wrapped(text, 100) {
            self.write(&self.paint("2", &line));
        }
        self.write("");
    }

    fn row(&self, mark: &str, what: &str, how: &str) {
        let mark = self.paint(
            if mark == "yes" { "32" } else { "31" },
            &format!("{mark:<4}"),
        );
        self.write(format!("{mark} {what:<58} {how}").trim_end());
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.coloured {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    /// Nobody who reads is no reason to stop: what was started has to be ended.
    fn write(&self, text: &str) {
        let _ = writeln!(io::stdout().lock(), "{text}");
    }
}

/// In lines of at most so many characters.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(line) = lines.last_mut() else { break };
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_wider_than_it_may_be_unless_a_word_is() {
        assert_eq!(wrapped("a bc def", 4), ["a bc", "def"]);
        assert_eq!(wrapped("a  longword b", 4), ["a", "longword", "b"]);
        assert_eq!(wrapped("", 4), [""]);
    }
}
