#compdef dog
# Completion of dog for zsh: dog itself says what may stand where the cursor is.
_dog() {
    local line value
    local -a lines described open
    lines=("${(@f)$("${words[1]}" complete -- "${(@Q)words[1,CURRENT]}" 2>/dev/null)}")
    for line in "${lines[@]}"; do
        value=${line%%$'\t'*}
        case $value in
            ('') ;;
            (//files) _files ;;
            (*[@=]) open+=("$value") ;;
            (*) described+=("${value//:/\\:}:${line#*$'\t'}") ;;
        esac
    done
    (( ${#open} )) && compadd -S '' -a open
    (( ${#described} )) && _describe dog described
}
if [[ ${funcstack[1]} == _dog ]]; then
    _dog "$@"
else
    compdef _dog dog
fi
