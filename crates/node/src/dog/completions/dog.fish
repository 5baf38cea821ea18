# Completion of dog for fish: dog itself says what may stand where the cursor is.
function __dog_complete
    set -l words (commandline --current-process --tokenize --cut-at-cursor)
    set -l word (commandline --current-token --cut-at-cursor)
    for line in ($words[1] complete -- $words "$word" 2>/dev/null)
        switch $line
            case '//files*'
                __fish_complete_path "$word"
            case '*'
                echo $line
        end
    end
end
complete --command dog --no-files --arguments '(__dog_complete)'
