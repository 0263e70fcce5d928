//! Workers: a prefill worker makes the first token of a request, a decode worker the others. Each measures itself with
//! its struct of metrics, and does not know who listens.
//!
//! The model is a small one of a continuously batching engine, with numbers of the order of a 70B model on a few GPUs:
//!
//! - Prefill takes one prompt at a time: a fixed cost and so many tokens per second. Others wait in line.
//! - Decode makes one token for every running request per step. A step takes longer the more requests run and the more
//!   tokens their KV caches hold.
//! - KV memory is a number of blocks of 16 tokens. A request occupies blocks for its prompt and for what it has generated
//!   until it is done. One that does not fit waits, in order of arrival. When a running request needs a block and there
//!   is none, the youngest is thrown out, goes to the head of the line, and its cache has to be computed again.

use std::{collections::VecDeque, time::Duration};

use metricbus::{Counter, Gauge, Histogram, MetricBus, Metrics};

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Prefill,
    Decode,
}

impl Role {
    pub const ALL: [Role; 2] = [Role::Prefill, Role::Decode];

    /// The component's name, as in the labels.
    pub fn name(self) -> &'static str {
        match self {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
        }
    }
}

/// A request on its way through the fleet.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub arrived: Duration,
    /// When its prefill was done; zero before.
    pub first_token: Duration,
    pub context: u32,
    /// Tokens to generate, the first one included.
    pub generated: u32,
}

/// What a prefill worker measures.
#[derive(Metrics)]
#[metrics(component = "prefill")]
pub struct PrefillMetrics {
    /// Requests waiting for the worker.
    queue_depth: Gauge,
    /// Requests being worked on.
    inflight_requests: Gauge,
    /// Requests finished by the worker.
    requests_total: Counter,
    /// Prompt tokens computed.
    prompt_tokens_total: Counter,
    /// Time from a request's arrival to its first token.
    #[metric(unit = "seconds", buckets = metricbus::dynamo::TTFT_SECONDS)]
    time_to_first_token_seconds: Histogram,
}

/// What a decode worker measures.
#[derive(Metrics)]
#[metrics(component = "decode")]
pub struct DecodeMetrics {
    /// Share of the KV cache in use, 0 to 1.
    kv_usage_ratio: Gauge,
    /// Requests waiting for the worker.
    queue_depth: Gauge,
    /// Requests being worked on.
    inflight_requests: Gauge,
    /// Requests finished by the worker.
    requests_total: Counter,
    /// Tokens generated, without the first of each request.
    output_tokens_total: Counter,
    /// Requests thrown out of a full KV cache, to be computed again.
    preemptions_total: Counter,
    /// Time from one token of a request to the next.
    #[metric(unit = "seconds", buckets = metricbus::dynamo::ITL_SECONDS)]
    inter_token_latency_seconds: Histogram,
}

/// Prompt tokens per second that a prefill worker computes.
const PREFILL_TOKENS_PER_SECOND: f64 = 7_500.0;
/// What each prompt costs beside that.
const PREFILL_OVERHEAD: Duration = Duration::from_millis(20);

fn prefill_time(tokens: u32) -> Duration {
    Duration::from_secs_f64(f64::from(tokens) / PREFILL_TOKENS_PER_SECOND)
}

/// A worker that computes prompts.
pub struct Prefill {
    pub metrics: PrefillMetrics,
    waiting: VecDeque<Job>,
    current: Option<Job>,
    /// Prompt tokens waiting or being computed.
    backlog: u64,
}

impl Prefill {
    pub fn new(metrics: PrefillMetrics) -> Self {
        Prefill {
            metrics,
            waiting: VecDeque::new(),
            current: None,
            backlog: 0,
        }
    }

    /// Takes a request; if the worker was idle, the time at which its prefill is done.
    pub fn accept(&mut self, job: Job, now: Duration) -> Option<Duration> {
        self.backlog += u64::from(job.context);
        self.waiting.push_back(job);
        let done = if self.current.is_none() {
            self.start_next(now)
        } else {
            None
        };
        self.metrics.queue_depth.set(self.waiting.len() as f64);
        done
    }

    /// The current prefill is done: its request, and when the next one will be.
    pub fn finish(&mut self, now: Duration) -> (Option<Job>, Option<Duration>) {
        let done = self.current.take().map(|job| Job {
            first_token: now,
            ..job
        });
        if let Some(job) = &done {
            self.backlog -= u64::from(job.context);
            self.metrics.requests_total.inc();
            self.metrics
                .prompt_tokens_total
                .inc_by(u64::from(job.context));
            self.metrics
                .time_to_first_token_seconds
                .observe_duration(now - job.arrived);
        }
        let next = self.start_next(now);
        self.metrics.queue_depth.set(self.waiting.len() as f64);
        (done, next)
    }

    fn start_next(&mut self, now: Duration) -> Option<Duration> {
        self.current = self.waiting.pop_front();
        let busy = self.current.is_some();
        self.metrics
            .inflight_requests
            .set(f64::from(u8::from(busy)));
        self.current
            .map(|job| now + PREFILL_OVERHEAD + prefill_time(job.context))
    }

    pub fn load(&self) -> f64 {
        self.backlog as f64
    }

    pub fn queue(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_idle(&self) -> bool {
        self.current.is_none()
    }
}

const BLOCK_TOKENS: u32 = 16;
/// KV memory of a decode worker: 22 400 tokens.
pub const KV_BLOCKS: u32 = 1_400;
/// Blocks kept free on admission, so that the running requests can grow a little: 1 %, as vLLM's watermark.
const KV_BLOCKS_RESERVED: u32 = 15;

const STEP_BASE: Duration = Duration::from_millis(14);
const STEP_PER_REQUEST: Duration = Duration::from_micros(500);
const STEP_PER_BLOCK: Duration = Duration::from_micros(6);

/// A worker that generates tokens.
pub struct Decode {
    pub metrics: DecodeMetrics,
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    blocks_used: u32,
    /// What the requests here will need in the end; the router goes by it.
    blocks_wanted: u32,
    stepping: bool,
}

/// A request at a decode worker.
#[derive(Clone, Copy)]
struct Sequence {
    job: Job,
    /// Tokens generated so far, the one of the prefill included.
    produced: u32,
    last_token: Duration,
    blocks: u32,
    /// Its cache was lost, and has to be computed again on admission.
    recompute: bool,
}

impl Sequence {
    fn tokens(&self) -> u32 {
        self.job.context + self.produced
    }
}

fn blocks(tokens: u32) -> u32 {
    tokens.div_ceil(BLOCK_TOKENS)
}

/// Whether a decode worker can ever hold such a request.
pub fn fits(context: u32, generated: u32) -> bool {
    blocks(context.saturating_add(generated)) + KV_BLOCKS_RESERVED <= KV_BLOCKS
}

impl Decode {
    pub fn new(metrics: DecodeMetrics) -> Self {
        Decode {
            metrics,
            running: Vec::new(),
            waiting: VecDeque::new(),
            blocks_used: 0,
            blocks_wanted: 0,
            stepping: false,
        }
    }

    /// Takes a request; if the worker was idle, the time of its next step.
    pub fn accept(&mut self, job: Job, now: Duration) -> Option<Duration> {
        self.blocks_wanted += blocks(job.context + job.generated);
        self.waiting.push_back(Sequence {
            job,
            produced: 1,
            last_token: job.first_token,
            blocks: 0,
            recompute: false,
        });
        if self.stepping {
            self.metrics.queue_depth.set(self.waiting.len() as f64);
            return None;
        }
        self.next_step(now)
    }

    /// A step is done: every running request has one more token. Those that are finished go to `done`; gives the time
    /// of the next step.
    pub fn step(&mut self, now: Duration, done: &mut Vec<Job>) -> Option<Duration> {
        self.metrics
            .output_tokens_total
            .inc_by(self.running.len() as u64);
        for sequence in &mut self.running {
            sequence.produced += 1;
            let gap = now - sequence.last_token;
            self.metrics
                .inter_token_latency_seconds
                .observe_duration(gap);
            sequence.last_token = now;
        }
        let finished_before = done.len();
        let (used, wanted) = (&mut self.blocks_used, &mut self.blocks_wanted);
        self.running.retain(|sequence| {
            let finished = sequence.produced >= sequence.job.generated;
            if finished {
                *used -= sequence.blocks;
                *wanted -= blocks(sequence.job.context + sequence.job.generated);
                done.push(sequence.job);
            }
            !finished
        });
        self.metrics
            .requests_total
            .inc_by((done.len() - finished_before) as u64);
        self.grow();
        self.next_step(now)
    }

    /// Gives the running requests the blocks that their next tokens need, oldest first.
    fn grow(&mut self) {
        let mut index = 0;
        while index < self.running.len() {
            let wanted = blocks(self.running[index].tokens() + 1);
            let more = wanted - self.running[index].blocks;
            if self.blocks_used + more <= KV_BLOCKS {
                self.blocks_used += more;
                self.running[index].blocks = wanted;
                index += 1;
                continue;
            }
            // The youngest makes room, which may be the one that asks.
            if let Some(youngest) = self.running.pop() {
                self.blocks_used -= youngest.blocks;
                self.waiting.push_front(Sequence {
                    blocks: 0,
                    recompute: true,
                    ..youngest
                });
                self.metrics.preemptions_total.inc();
            }
        }
    }

    /// Admits who fits, and begins a step where there is somebody to run.
    fn next_step(&mut self, now: Duration) -> Option<Duration> {
        let mut recomputed = 0;
        while let Some(next) = self.waiting.front() {
            let wanted = blocks(next.tokens() + 1);
            let alone = self.running.is_empty();
            if self.blocks_used + wanted + KV_BLOCKS_RESERVED > KV_BLOCKS && !alone {
                break;
            }
            self.blocks_used += wanted;
            recomputed += if next.recompute { next.tokens() } else { 0 };
            let admitted = Sequence {
                blocks: wanted,
                recompute: false,
                ..*next
            };
            self.running.push(admitted);
            self.waiting.pop_front();
        }
        self.stepping = !self.running.is_empty();
        self.metrics.queue_depth.set(self.waiting.len() as f64);
        self.metrics
            .inflight_requests
            .set(self.running.len() as f64);
        self.metrics.kv_usage_ratio.set(self.kv_usage());
        let step = STEP_BASE
            + STEP_PER_REQUEST * self.running.len() as u32
            + STEP_PER_BLOCK * self.blocks_used
            + prefill_time(recomputed);
        self.stepping.then_some(now + step)
    }

    pub fn kv_usage(&self) -> f64 {
        f64::from(self.blocks_used) / f64::from(KV_BLOCKS)
    }

    pub fn load(&self) -> f64 {
        f64::from(self.blocks_wanted)
    }

    pub fn is_idle(&self) -> bool {
        !self.stepping
    }
}

impl PrefillMetrics {
    /// The worker is gone: so are the gauges that told its state. What it counted stays.
    pub fn retire(&self, bus: &MetricBus) {
        retire(bus, [&self.queue_depth, &self.inflight_requests]);
    }
}

impl DecodeMetrics {
    /// As [`PrefillMetrics::retire`].
    pub fn retire(&self, bus: &MetricBus) {
        let gauges = [
            &self.kv_usage_ratio,
            &self.queue_depth,
            &self.inflight_requests,
        ];
        retire(bus, gauges);
    }
}

fn retire<const N: usize>(bus: &MetricBus, gauges: [&Gauge; N]) {
    for gauge in gauges {
        // A handle is a selector that can't be wrong.
        let _ = bus.remove(gauge);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(context: u32, generated: u32) -> Job {
        Job {
            arrived: Duration::ZERO,
            first_token: Duration::ZERO,
            context,
            generated,
        }
    }

    fn decode() -> (MetricBus, Decode) {
        let bus = MetricBus::new();
        let metrics = bus.register().expect("valid declarations");
        (bus, Decode::new(metrics))
    }

    /// Steps until the worker is idle; the finished requests in order and the time of the last step.
    fn run(worker: &mut Decode, mut next: Option<Duration>) -> (Vec<Job>, Duration) {
        let (mut done, mut now) = (Vec::new(), Duration::ZERO);
        while let Some(at) = next {
            assert!(worker.blocks_used <= KV_BLOCKS);
            now = at;
            next = worker.step(now, &mut done);
        }
        (done, now)
    }

    #[test]
    fn a_prefill_worker_takes_one_prompt_at_a_time() {
        let bus = MetricBus::new();
        let mut worker = Prefill::new(bus.register().expect("valid declarations"));
        let first = worker.accept(job(750, 10), Duration::ZERO);
        assert_eq!(first, Some(Duration::from_millis(120)));
        assert_eq!(worker.accept(job(1500, 10), Duration::ZERO), None);
        assert_eq!(worker.metrics.queue_depth.get(), Some(1.0));
        let (done, second) = worker.finish(Duration::from_millis(120));
        assert_eq!(done.map(|job| job.first_token), first);
        assert_eq!(second, Some(Duration::from_millis(120 + 220)));
        assert_eq!(worker.metrics.queue_depth.get(), Some(0.0));
        assert_eq!(
            worker.metrics.time_to_first_token_seconds.snapshot().count,
            1
        );
        let _ = worker.finish(Duration::from_millis(340));
        assert!(worker.is_idle() && worker.load() == 0.0);
    }

    #[test]
    fn a_decode_worker_makes_every_token_and_frees_all_memory() {
        let (_bus, mut worker) = decode();
        let mut next = None;
        for _ in 0..10 {
            next = next.or(worker.accept(job(500, 40), Duration::ZERO));
        }
        let (done, _) = run(&mut worker, next);
        assert_eq!(done.len(), 10);
        // The first token of each is the prefill's.
        assert_eq!(worker.metrics.output_tokens_total.get(), 10 * 39);
        assert_eq!((worker.blocks_used, worker.blocks_wanted), (0, 0));
        assert_eq!(worker.metrics.kv_usage_ratio.get(), Some(0.0));
    }

    #[test]
    fn what_does_not_fit_waits_and_is_served_in_order() {
        let (_bus, mut worker) = decode();
        let next = worker.accept(job(16_000, 50), Duration::ZERO);
        assert_eq!(worker.accept(job(9_000, 20), Duration::ZERO), None);
        let mut done = Vec::new();
        let next = worker.step(next.expect("the first one runs"), &mut done);
        assert_eq!(worker.metrics.queue_depth.get(), Some(1.0));
        assert_eq!(worker.metrics.inflight_requests.get(), Some(1.0));
        let (done, _) = run(&mut worker, next);
        assert_eq!(
            done.iter().map(|job| job.generated).collect::<Vec<_>>(),
            [50, 20]
        );
    }

    #[test]
    fn a_full_cache_throws_out_the_youngest_which_still_finishes() {
        let (_bus, mut worker) = decode();
        let mut next = None;
        for _ in 0..23 {
            next = next.or(worker.accept(job(1_000, 400), Duration::ZERO));
        }
        let (done, _) = run(&mut worker, next);
        assert_eq!(done.len(), 23);
        assert!(worker.metrics.preemptions_total.get() > 0);
        assert_eq!(worker.metrics.output_tokens_total.get(), 23 * 399);
    }

    #[test]
    fn a_bigger_batch_makes_each_token_slower() {
        let (_bus, mut small) = decode();
        let (_bus, mut big) = decode();
        let next = small.accept(job(100, 100), Duration::ZERO);
        let (_, alone) = run(&mut small, next);
        let mut next = None;
        for _ in 0..40 {
            next = next.or(big.accept(job(100, 100), Duration::ZERO));
        }
        let (_, together) = run(&mut big, next);
        assert!(together > alone * 2, "{together:?} against {alone:?}");
    }

    #[test]
    fn a_retired_worker_leaves_its_counters_only() {
        let bus = MetricBus::new();
        let component = bus
            .scope()
            .with_prefix("fleet_")
            .with_label("component", "decode");
        let worker = |name: &str| -> DecodeMetrics {
            component
                .with_label("worker", name)
                .register()
                .expect("valid declarations")
        };
        let (a, b) = (worker("a"), worker("b"));
        a.requests_total.inc();
        b.kv_usage_ratio.set(0.5);
        a.retire(&bus);
        let names = |selector: &str| {
            let series = bus.series(selector).expect("a valid selector");
            series
                .iter()
                .map(|s| s.name().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(r#"{worker="a",__name__=~".*kv.*|.*depth|.*inflight.*"}"#),
            [""; 0]
        );
        assert!(names(r#"{worker="a"}"#).contains(&"fleet_requests_total".to_owned()));
        assert_eq!(names("fleet_kv_usage_ratio").len(), 1);
        // A worker of that name that comes later is a new one.
        assert_eq!(worker("a").kv_usage_ratio.get(), None);
        assert_eq!(names("fleet_kv_usage_ratio").len(), 2);
    }
}
