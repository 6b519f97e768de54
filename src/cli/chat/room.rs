//! Room in the context: whole exchanges go, the oldest first, where that is wanted.

use super::OnFull;
use super::answer::Answerer;
use super::talk::Talk;
use crate::cli::{CliError, InFile};
use crate::text::Message;

/// A part of the context that dropping leaves free where it can: what follows a dropped exchange has to be
/// read anew, which should not come with every answer.
const FREE_SHARE: usize = 4;

/// What is fed: text, and its ids.
pub type Prompt = (String, Vec<u32>);

impl Talk<'_> {
    /// Whether exchanges may go, and there are some.
    pub(super) fn may_drop(&self) -> bool {
        self.settings.on_full == OnFull::Drop && !self.transcript.exchanges.is_empty()
    }

    /// The prompt with this message last, which leaves room behind `made` tokens of its answer. `None`: there
    /// is no room for more of it.
    ///
    /// # Errors
    /// A message that there is no room for, or that the template refuses.
    pub(super) fn fit(
        &mut self,
        user: &str,
        made: usize,
        answerer: &Answerer<'_, '_>,
    ) -> Result<Option<Prompt>, CliError> {
        let context = answerer.engine.context();
        let fits = |prompt: &Prompt, free: usize| prompt.1.len() + made + free <= context;
        let whole = self.prompt(user, 0, answerer)?;
        if fits(&whole, 1) {
            return Ok(Some(whole));
        }
        let all = self.transcript.exchanges.len();
        if self.may_drop() {
            let least = self.prompt(user, all, answerer)?;
            if fits(&least, 1) {
                // The fewest that leave it free; prompts get shorter with each.
                let free = (context / FREE_SHARE).max(1);
                let (mut few, mut enough, mut prompt) = (0, all, least);
                while enough - few > 1 {
                    let count = few.midpoint(enough);
                    let shorter = self.prompt(user, count, answerer)?;
                    match fits(&shorter, free) {
                        true => (enough, prompt) = (count, shorter),
                        false => few = count,
                    }
                }
                self.drop_oldest(enough);
                return Ok(Some(prompt));
            }
        }
        if made > 0 {
            return Ok(None);
        }
        let message = format!(
            "the context is full: the conversation has {} tokens with this message, the context {context}; \
             the message is taken back",
            whole.1.len()
        );
        Err(CliError::new(message).hint("/drop, /undo and /clear make room, /set ctx N makes it larger"))
    }

    /// The prompt without so many of the oldest exchanges.
    fn prompt(&self, user: &str, dropped: usize, answerer: &Answerer<'_, '_>) -> Result<Prompt, CliError> {
        let mut messages = self.transcript.messages_after(dropped);
        messages.push(Message::new("user", user));
        let rendered = self.render(&messages)?;
        let ids = self.tokenizer().encode_chat(&rendered).in_file(answerer.path)?;
        if ids.is_empty() {
            let error = CliError::new("the chat template makes nothing of the conversation");
            return Err(error.in_file(answerer.path));
        }
        Ok((rendered.text().to_owned(), ids))
    }
}
