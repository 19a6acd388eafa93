//! Kafka's names in Rust's spelling.

/// `TopicId` -> `topic_id`, `ISR` -> `isr`, `KRaftVersion` -> `k_raft_version`.
pub fn snake(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    let mut snake = String::new();
    for (index, &letter) in letters.iter().enumerate() {
        if letter.is_ascii_uppercase() && index > 0 {
            let after_word = !letters[index - 1].is_ascii_uppercase();
            let before_word = letters.get(index + 1).is_some_and(char::is_ascii_lowercase);
            if after_word || before_word {
                snake.push('_');
            }
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// The name as a field: a keyword becomes a raw identifier.
pub fn field(name: &str) -> String {
    let snake = snake(name);
    match snake.as_str() {
        "type" | "match" | "ref" | "use" | "in" | "where" | "move" | "loop" | "final" | "override" => {
            format!("r#{snake}")
        }
        _ => snake,
    }
}

/// `TopicId` -> `topicId`: the name in Kafka's JSON.
pub fn camel(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}
