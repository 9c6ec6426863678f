//! Undoes the executed steps of a plan.

use crate::commands::install::executor::{Executor, PathState};
use crate::commands::install::plan::{Action, PlanStep};

/// Undoes all steps. Returns messages about the changes that could not be undone.
pub(super) fn undo_steps(
    done: Vec<(&PlanStep, Vec<PathState>)>,
    executor: &mut impl Executor,
) -> Vec<String> {
    executor.begin_undo();
    let mut left = Vec::new();
    let mut afterwards = Vec::new();
    for (step, before) in done.into_iter().rev() {
        for before in before.into_iter().rev() {
            left.extend(executor.restore_path(before).err());
        }
        let mut has_failed = false;
        for undo in &step.undo {
            // After a failure, keep the plugin's state. A running plugin needs the state, which
            // lists the values that are not restored yet.
            let result = match undo {
                Action::Remove(_) | Action::RemoveAll(_) if has_failed => {
                    Err("kept, because the plugin still needs it".to_owned())
                }
                _ => executor.execute(undo).map(drop),
            };
            if let Err(why) = result {
                has_failed = true;
                left.push(format!("{undo}: {why}"));
            }
        }
        afterwards.push(&step.afterwards);
    }
    // Execute the alternative actions in the order of their steps.
    for actions in afterwards.into_iter().rev() {
        let mut failed = Vec::new();
        for action in actions {
            match executor.execute(action) {
                Ok(_) => {
                    failed.clear();
                    break;
                }
                Err(why) => failed.push(format!("{action}: {why}")),
            }
        }
        left.extend(failed);
    }
    left
}
