//! Proof on demand: every question that a policy answers, asked in the guest and on the host.
//!
//! In the guest the agent's own program asks, so the image needs no tools.

use std::time::Duration;

use kiln_net::verify::{Expected, Finding, Observed, Question, Side, Verification};
use serde::{Deserialize, Serialize};

use super::attachment::Attachment;
use super::host::blocking;
use crate::error::{Error, ErrorCode};
use crate::exec::{ExecOutput, ExecSpec};
use crate::guest::GuestLink;

/// The agent's program, as process 1 holds it open; its file is gone.
const AGENT: &str = "/proc/1/exe";
/// The agent answers every question within 2 s, side by side; emulated guests are slow.
const PATIENCE: Duration = Duration::from_secs(30);
/// One word and a newline per question; whoever says more is not our agent.
const MOST_OUTPUT: usize = 64 * 1024;

/// What one question showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProofOutcome {
    /// As the policy says.
    Holds,
    /// Not as the policy says.
    Broken,
    /// Nothing is shown: the host gets no answer either, or nothing listens in the guest.
    Unproven,
}

/// One question and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// What it is about, for people.
    pub about: String,
    /// `guest` or `host`: where it was asked.
    pub from: String,
    /// What was asked.
    pub question: String,
    /// Whether the policy lets an answer come.
    pub allowed: bool,
    /// What it showed.
    pub outcome: ProofOutcome,
}

pub(crate) async fn verify(
    id: &str,
    attachment: Option<&Attachment>,
    link: &GuestLink,
) -> Result<Vec<Proof>, Error> {
    let attachment = attachment.ok_or_else(|| {
        Error::new(
            ErrorCode::InvalidState,
            format!("sandbox {id} has no network"),
        )
        .with_hint("there is nothing to verify: nothing can be reached")
    })?;
    let verification = attachment.verification().await?;
    let asked: Vec<String> = verification
        .probes()
        .iter()
        .filter(|probe| probe.from == Side::Guest)
        .map(|probe| word_of(&probe.question))
        .collect();
    let answers = ask_in_guest(link, asked).await?;
    blocking(move || Ok(judge(&verification, answers))).await
}

/// Answers are the guest's word for it: a lie about silence is not told from silence. What it
/// says it reached, it reached.
fn judge(verification: &Verification, answers: Vec<Observed>) -> Vec<Proof> {
    let mut answers = answers.into_iter();
    let prove = |probe: &kiln_net::verify::Probe| {
        let finding = match probe.from {
            Side::Guest => {
                let observed = answers.next().unwrap_or(Observed::Silent);
                verification.judge(probe, observed)
            }
            Side::Host => verification.judge_from_host(probe),
        };
        Proof {
            about: probe.about.clone(),
            from: match probe.from {
                Side::Guest => "guest".to_owned(),
                Side::Host => "host".to_owned(),
            },
            question: probe.question.to_string(),
            allowed: probe.expected == Expected::Open,
            outcome: match finding {
                Finding::Holds => ProofOutcome::Holds,
                Finding::Broken => ProofOutcome::Broken,
                Finding::Unproven => ProofOutcome::Unproven,
            },
        }
    };
    verification.probes().iter().map(prove).collect()
}

fn word_of(question: &Question) -> String {
    match question {
        Question::Tcp(to) => format!("tcp:{to}"),
        Question::Ping(to) => format!("ping:{to}"),
        Question::Name { resolver, name } => format!("name:{resolver}:{name}"),
    }
}

async fn ask_in_guest(link: &GuestLink, questions: Vec<String>) -> Result<Vec<Observed>, Error> {
    let count = questions.len();
    if count == 0 {
        return Ok(Vec::new());
    }
    let spec = ExecSpec {
        argv: [AGENT.to_owned(), "--ask".to_owned()]
            .into_iter()
            .chain(questions)
            .collect(),
        kill_on_detach: true,
        ..ExecSpec::default()
    };
    let text = tokio::time::timeout(PATIENCE, output_of(link, &spec))
        .await
        .map_err(|_| unanswered("it took too long"))??;
    let answers = understand(&text).ok_or_else(|| unanswered(&text))?;
    if answers.len() != count {
        return Err(unanswered(&text));
    }
    Ok(answers)
}

async fn output_of(link: &GuestLink, spec: &ExecSpec) -> Result<String, Error> {
    let mut session = link.exec(spec).await?;
    let mut text = Vec::new();
    while let Some(output) = session.output.next().await? {
        if let ExecOutput::Stdout(bytes) = output {
            text.extend_from_slice(&bytes);
        }
        if text.len() > MOST_OUTPUT {
            return Err(unanswered("it says too much"));
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn understand(text: &str) -> Option<Vec<Observed>> {
    let word = |line: &str| match line {
        "answered" => Some(Observed::Answered),
        "refused" => Some(Observed::Refused),
        "silent" => Some(Observed::Silent),
        _ => None,
    };
    text.lines().map(word).collect()
}

fn unanswered(what: &str) -> Error {
    Error::new(
        ErrorCode::AgentUnreachable,
        "the guest's agent does not answer the questions",
    )
    .with_details(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_agents_words_are_understood() {
        let all = understand("answered\nrefused\nsilent\n").expect("words");
        assert_eq!(
            all,
            [Observed::Answered, Observed::Refused, Observed::Silent]
        );
        assert_eq!(understand("answered\nsh: not found\n"), None);
    }
}
