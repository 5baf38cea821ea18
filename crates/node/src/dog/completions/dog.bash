# Completion of dog for bash: dog itself says what may stand where the cursor is.
_dog() {
    local line=${COMP_LINE:0:COMP_POINT} prefix='' char head value lines=() words=()
    # Backslashes are taken away here; in quotes only names without white space are understood.
    # shellcheck disable=SC2162
    read -a words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=('')
    local word=${words[-1]}
    # bash replaces only what is behind the last of these.
    for char in @ = :; do
        if [[ $COMP_WORDBREAKS == *"$char"* && $word == *"$char"* ]]; then
            head=${word%"${word##*"$char"}"}
            ((${#head} > ${#prefix})) && prefix=$head
        fi
    done
    COMPREPLY=()
    mapfile -t lines < <("$1" complete -- "${words[@]}" 2>/dev/null)
    for line in "${lines[@]}"; do
        value=${line%%$'\t'*}
        if [[ $value == //files ]]; then
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "${word#"$prefix"}")
            return
        fi
        COMPREPLY+=("${value#"$prefix"}")
    done
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[@=] ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -F _dog dog
