# bash completion for domfs(1)

_domfs() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command='' i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        mount | umount | tree | version)
            command=${COMP_WORDS[i]}
            break
            ;;
        esac
    done
    # Bash splits --option=value at the equals sign.
    if [[ $cur == = ]]; then
        cur=
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    case $prev in
    --xl-config | --log-file | --lock-file)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        return
        ;;
    --image-dir)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -d -- "$cur")
        return
        ;;
    --group)
        mapfile -t COMPREPLY < <(compgen -g -- "$cur")
        return
        ;;
    --vg)
        mapfile -t COMPREPLY < <(compgen -W "$(vgs --noheadings -o vg_name 2>/dev/null)" -- "$cur")
        return
        ;;
    --autoextend)
        mapfile -t COMPREPLY < <(compgen -W '70:20 none' -- "$cur")
        return
        ;;
    --map)
        mapfile -t COMPREPLY < <(compgen -W 'kpartx none' -- "$cur")
        return
        ;;
    --log-format)
        mapfile -t COMPREPLY < <(compgen -W 'text json' -- "$cur")
        return
        ;;
    esac
    local words
    case $command in
    '') words='mount umount tree version --help' ;;
    mount) words='--xl-config= --image-dir= --vg= --snapshot-size= --autoextend= --foreign --remove-volumes --map= --no-pause --pause-timeout= --freeze-cmd= --thaw-cmd= --freeze-timeout= --allow-other --group= --daemon --log-file= --log-format= --lock-file= --debug --help' ;;
    umount) words='--lazy --help' ;;
    *) words='--help' ;;
    esac
    if [[ -z $command || $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
        if [[ ${COMPREPLY[*]} == *= ]]; then
            compopt -o nospace
        fi
    elif [[ $command == umount ]]; then
        # The mounts of ours; the table writes a blank as \040.
        mapfile -t COMPREPLY < <(compgen -W "$(awk '$3 == "fuse.domfs" { print $2 }' /proc/self/mounts)" -- "$cur")
    elif [[ $command == mount ]]; then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -d -- "$cur")
    fi
}
complete -F _domfs domfs
