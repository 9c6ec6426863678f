//! Execution of a plan.

use crate::commands::install::executor::{Executor, INTERRUPTED, PathState};
use crate::commands::install::plan::{Plan, PlanStep};
use crate::commands::install::undo::undo_steps;

/// Failure of a plan, and the result of undoing the plan's executed steps.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {why}; {}", describe_undo(left))]
pub struct PlanFailure {
    step: String,
    why: String,
    /// Messages about the actions that the plan could not undo.
    left: Vec<String>,
}

/// Describes the result of the undo.
fn describe_undo(left: &[String]) -> String {
    if left.is_empty() {
        return "all earlier steps were undone".to_owned();
    }
    format!("some earlier steps could not be undone: {}", left.join("; "))
}

impl Plan {
    /// Executes the plan, and calls `tell` before each step. If a step fails or the user interrupts
    /// the program, undoes all executed steps.
    ///
    /// # Errors
    ///
    /// Fails when a step fails or the user interrupts the program.
    pub fn execute(
        &self,
        executor: &mut impl Executor,
        mut tell: impl FnMut(&PlanStep),
    ) -> Result<(), PlanFailure> {
        let mut done: Vec<(&PlanStep, Vec<PathState>)> = Vec::new();
        for step in &self.steps {
            if executor.is_interrupted() {
                let left = undo_steps(done, executor);
                return Err(PlanFailure {
                    step: step.action.to_string(),
                    why: INTERRUPTED.to_owned(),
                    left,
                });
            }
            tell(step);
            match executor.execute(&step.action) {
                Ok(before) => done.push((step, before)),
                Err(why) => {
                    // A failed command may have made some of its changes, so undo the failed step
                    // too.
                    done.push((step, Vec::new()));
                    let left = undo_steps(done, executor);
                    return Err(PlanFailure { step: step.action.to_string(), why, left });
                }
            }
        }
        Ok(())
    }
}
