//! Loading a program although something wants the thread meanwhile; called by the loader for each program.

use aya::programs::ProgramError;
use nix::errno::Errno;

/// How often a program is tried. Each try is a new look of some milliseconds: what interrupts all of
/// these is no chance any more. libbpf tries five times.
const TRIES: u32 = 20;

/// Loads a program. The verifier gives up with `EAGAIN` when its thread has a signal to take or is to be
/// frozen, and wants to be asked again (`do_check` in kernel/bpf/verifier.c).
///
/// # Errors
///
/// What the last try said.
pub fn load(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    let mut tries = 1;
    loop {
        match load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.raw_os_error() == Some(Errno::EAGAIN as i32) && tries < TRIES => {
                tries += 1;
                tracing::debug!(tries, "the verifier was interrupted: asking it again");
            }
            other => return other,
        }
    }
}
