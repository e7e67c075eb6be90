//! Continuous batching: a thread that owns the model, admits jobs and lets them go at every step.

use crate::error::ApiError;
use crate::job::{Answer, Event, Job};
use bitsmith_formats::Result;
use bitsmith_runtime::generate::{Batch, CacheType, Feed, Sequence};
use bitsmith_runtime::{Model, Tokenizer};
use hyper::StatusCode;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Prompt tokens read in one step, so that answers under way do not wait long.
const PROMPT_BUDGET: usize = 256;
/// The same while nobody waits for tokens.
const IDLE_BUDGET: usize = 512;

/// How much is taken on.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Answers made at once.
    pub slots: usize,
    /// Answers waiting for a slot.
    pub queue: usize,
    /// Storage of keys and values.
    pub cache: CacheType,
}

/// Hands jobs to the model's thread.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Job>,
    running: usize,
    stop: Stop,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stop {
    #[default]
    No,
    /// Finish what has been taken on.
    Drain,
    /// Drop everything.
    Now,
}

impl Scheduler {
    /// A scheduler without jobs.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Scheduler { limits, state: Mutex::default(), changed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers being made, and answers waiting.
    pub fn load(&self) -> (usize, usize) {
        let state = self.state();
        (state.running, state.queue.len())
    }

    /// Whether new jobs are refused for good.
    pub fn is_stopping(&self) -> bool {
        self.state().stop != Stop::No
    }

    /// Takes on all jobs of a request, or none.
    pub fn submit(&self, jobs: Vec<Job>) -> Result<(), ApiError> {
        let mut state = self.state();
        if state.stop != Stop::No {
            return Err(ApiError::stopping());
        }
        state.queue.retain(|job| !job.events.is_closed());
        let free = self.limits.slots.saturating_sub(state.running) + self.limits.queue;
        // A request larger than the whole queue has its turn when the queue is empty.
        if !state.queue.is_empty() && state.queue.len() + jobs.len() > free {
            let message = format!("all {} slots are taken and {} answers wait", self.limits.slots, state.queue.len());
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("{message}: try again later")).code("overloaded"));
        }
        state.queue.extend(jobs);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Refuses new jobs; those taken on are finished.
    pub fn drain(&self) {
        let mut state = self.state();
        if state.stop == Stop::No {
            state.stop = Stop::Drain;
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Drops all jobs, after the step that is under way.
    pub fn cut(&self) {
        self.state().stop = Stop::Now;
        self.changed.notify_one();
    }

    /// Works until told to stop.
    pub fn run(&self, model: &Model, tokenizer: &Tokenizer) {
        let mut batch = Batch::new(model);
        let mut running: Vec<Slot<'_>> = Vec::new();
        // Memory of finished sequences, used again.
        let mut spare: Vec<Sequence> = Vec::new();
        while let Some(admitted) = self.admit(running.len()) {
            for job in admitted {
                match spare.pop().map_or_else(|| batch.sequence(self.limits.cache), Ok) {
                    Ok(sequence) => running.push(Slot { answer: Answer::new(job, tokenizer), sequence }),
                    Err(e) => {
                        let _ = job.events.send((job.index, Event::Failed(e.into())));
                    }
                }
            }
            if let Err(e) = step(&mut batch, &mut running) {
                // It cannot be told whose fault it was.
                let error = ApiError::from(e);
                running.iter_mut().for_each(|slot| slot.answer.fail(error.clone()));
            }
            for mut slot in running.extract_if(.., |slot| slot.answer.is_over()) {
                slot.sequence.clear();
                spare.push(slot.sequence);
            }
        }
        running.iter_mut().for_each(|slot| slot.answer.fail(ApiError::stopping()));
    }

    /// Jobs for free slots, waiting for some if there is nothing else to do. Nothing when the work is over.
    fn admit(&self, running: usize) -> Option<Vec<Job>> {
        let mut state = self.state();
        loop {
            state.running = running;
            state.queue.retain(|job| !job.events.is_closed());
            match state.stop {
                Stop::Now => {
                    for job in state.queue.drain(..) {
                        let _ = job.events.send((job.index, Event::Failed(ApiError::stopping())));
                    }
                    return None;
                }
                Stop::Drain if running == 0 && state.queue.is_empty() => return None,
                _ => {}
            }
            let free = self.limits.slots.saturating_sub(running).min(state.queue.len());
            if running > 0 || free > 0 {
                state.running += free;
                return Some(state.queue.drain(..free).collect());
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A place in the batch.
struct Slot<'t> {
    answer: Answer<'t>,
    sequence: Sequence,
}

/// Feeds every sequence: one token to answers under way, and parts of prompts as far as the budget goes, the oldest first.
fn step(batch: &mut Batch<'_>, running: &mut [Slot<'_>]) -> Result<()> {
    let writing = running.iter().any(|slot| slot.answer.is_writing());
    let mut budget = if writing { PROMPT_BUDGET } else { IDLE_BUDGET };
    let (mut answers, mut reads) = (Vec::new(), Vec::new());
    for Slot { answer, sequence } in running.iter_mut().filter(|slot| !slot.answer.is_over()) {
        if let Some((tokens, wanted)) = answer.read(&mut budget) {
            answers.push(answer);
            reads.push((sequence, tokens, wanted));
        }
    }
    let mut feeds: Vec<Feed<'_>> =
        reads.iter_mut().map(|(sequence, tokens, wanted)| Feed { sequence, tokens, wanted: *wanted }).collect();
    batch.step(&mut feeds, |feed, position, logits| answers[feed].take(position, logits))
}
