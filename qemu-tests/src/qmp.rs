//! QEMU's control socket: link down, stop, continue.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Runs one command on the machine whose socket this is.
///
/// # Errors
/// If the machine is gone or refuses.
pub fn execute(socket: &Path, command: &str, arguments: &Value) -> Result<Value> {
    let stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).context("limiting the wait for an answer")?;
    let mut answers = BufReader::new(stream.try_clone().context("duplicating the connection")?);
    let mut stream = stream;
    read_answer(&mut answers).context("reading the greeting")?;
    for (name, arguments) in [("qmp_capabilities", &json!({})), (command, arguments)] {
        writeln!(stream, "{}", json!({ "execute": name, "arguments": arguments })).context("sending a command")?;
        let answer = read_answer(&mut answers).with_context(|| format!("reading the answer to {name}"))?;
        if name == command {
            return Ok(answer);
        }
    }
    bail!("{command} was not run")
}

/// The next line that is not an event.
fn read_answer(answers: &mut impl BufRead) -> Result<Value> {
    loop {
        let mut line = String::new();
        if answers.read_line(&mut line).context("the connection broke")? == 0 {
            bail!("the machine closed the connection");
        }
        let mut answer: Value = serde_json::from_str(&line).context("parsing an answer")?;
        if let Some(error) = answer.get("error") {
            bail!("refused: {error}");
        }
        if answer.get("event").is_none() {
            return Ok(answer["return"].take());
        }
    }
}
