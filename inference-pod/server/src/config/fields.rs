//! Fields of the configuration file and the flags that set them, so that an error tells whoever runs a pod by hand what to type.

/// A field and what is known of it.
pub struct Field {
    /// Its name in the file, with those around it.
    pub name: &'static str,
    /// The flag of `serve` that sets it, without dashes; one that has none is told of in words.
    pub set_by: SetBy,
}

/// How a field is set by hand.
pub enum SetBy {
    /// By this flag of `serve`.
    Flag(&'static str),
    /// Only in the file; this is what it means.
    File(&'static str),
}

const fn flag(name: &'static str, flag: &'static str) -> Field {
    Field { name, set_by: SetBy::Flag(flag) }
}

const fn file(name: &'static str, meaning: &'static str) -> Field {
    Field { name, set_by: SetBy::File(meaning) }
}

/// All fields, in the order of the help.
pub const FIELDS: &[Field] = &[
    flag("model.uri", "model"),
    flag("task", "task"),
    flag("model.cacheDir", "cache-dir"),
    flag("model.digest", "digest"),
    file("adapters[].name", "The model name that a LoRA adapter answers to (the first part of `--adapter`)"),
    file("adapters[].uri", "Its folder, or hf://org/name@revision (the second part of `--adapter`)"),
    flag("engine.maxAdapters", "max-adapters"),
    flag("servedModelNames", "served-model-name"),
    flag("server.listen", "listen"),
    flag("server.adminListen", "admin-listen"),
    flag("engine.device", "device"),
    flag("engine.dtype", "dtype"),
    flag("engine.quantization", "quantization"),
    flag("engine.maxModelLen", "max-model-len"),
    flag("engine.maxSequences", "max-sequences"),
    flag("engine.maxBatchedTokens", "max-batched-tokens"),
    flag("engine.gpuMemoryUtilization", "gpu-memory-utilization"),
    flag("engine.threads", "threads"),
    flag("engine.kvCacheBytes", "kv-cache-bytes"),
    flag("engine.blockTokens", "block-tokens"),
    flag("kvCache.prefixSharing", "prefix-sharing"),
    flag("kvCache.hostBytes", "host-tier-bytes"),
    flag("kvCache.disk.path", "disk-tier"),
    flag("kvCache.disk.bytes", "disk-tier-bytes"),
    file("speculation.method", "`nGram` (prompt lookup) or `draftModel`"),
    flag("speculation.tokens", "speculative-tokens"),
    file("speculation.longest", "Of `nGram`: longest run of last tokens that is looked for; by hand 4"),
    file("speculation.shortest", "Of `nGram`: shortest run that is looked for; by hand 2"),
    flag("speculation.uri", "draft-model"),
    flag("server.maxQueuedRequests", "max-queued-requests"),
    flag("server.drainDelaySeconds", "drain-delay-seconds"),
    flag("server.drainSeconds", "drain-seconds"),
    flag("server.revision", "revision"),
];

/// A field's name with its flag in brackets, where it has one.
pub fn with_flag(field: &str) -> String {
    match FIELDS.iter().find(|known| known.name == field) {
        Some(Field { set_by: SetBy::Flag(flag), .. }) => format!("{field} (--{flag})"),
        _ => field.to_owned(),
    }
}

/// A message with each field's flag in brackets, where the field is first named.
pub fn with_flags(message: &str) -> String {
    // Of the remedies the one that only a cluster has.
    let mut text = message.replace("raise resources.memory", "use a machine with more memory");
    // A name without a dot is also a word.
    for Field { name, .. } in FIELDS.iter().filter(|field| field.name.contains('.')) {
        if let Some(at) = position(&text, name) {
            text.replace_range(at..at + name.len(), &with_flag(name));
        }
    }
    text
}

/// Where a field is named for the first time, unless its flag follows there already or it is a part of a longer name.
fn position(text: &str, name: &str) -> Option<usize> {
    let (at, _) = text.match_indices(name).find(|(at, _)| {
        let (before, after) = (&text[..*at], &text[*at + name.len()..]);
        let longer = before.ends_with(|c: char| c.is_alphanumeric() || c == '.')
            || after.starts_with(char::is_alphanumeric)
            || after.strip_prefix('.').is_some_and(|rest| rest.starts_with(char::is_alphanumeric));
        !longer
    })?;
    (!text[at + name.len()..].starts_with(" (--")).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_the_flags_of_its_fields_once() {
        for (message, wanted) in [
            (
                "kvCache.hostBytes: lower it; kvCache.hostBytes is too large",
                "kvCache.hostBytes (--host-tier-bytes): lower it; kvCache.hostBytes is too large",
            ),
            (
                "set engine.maxModelLen to 5 or less, or lower engine.maxSequences",
                "set engine.maxModelLen (--max-model-len) to 5 or less, or lower engine.maxSequences (--max-sequences)",
            ),
            ("correct the path in model.uri.", "correct the path in model.uri (--model)."),
            ("spec.model.uri and model.uris", "spec.model.uri and model.uris"),
            ("server.listen (--listen) is foo", "server.listen (--listen) is foo"),
            ("lower it, or raise resources.memory", "lower it, or use a machine with more memory"),
            ("the task is no field here", "the task is no field here"),
        ] {
            assert_eq!(with_flags(message), wanted);
        }
    }
}
